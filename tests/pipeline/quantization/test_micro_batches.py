"""A step that does not fit the memory limit is taken in parts and stays the same step."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from quant_networks import CPU, Plain, float_graph, quant_network
from torch import Tensor, nn

from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.finetune import FinetuneSettings, finetune
from fdda_deploy.pipeline.quantization.micro_batches import backward_in_parts, images_at_once

SETTINGS = FinetuneSettings(
    4, batch_size=12, temperature=2.0, augment="none", trainable="scales-and-biases"
)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def wide() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))


def ready(module: nn.Module) -> nn.Module:
    module(images(1))
    return module


def test_a_batch_is_halved_until_it_fits() -> None:
    network = ready(wide())
    each = 64 * 6 * 6 * 4  # the values that ReLU and the linear layer share
    found = {limit: images_at_once(network, images(1), 16, limit) for limit in (40 * each, each, 1)}
    assert found == {40 * each: 8, each: 1, 1: 1}
    assert images_at_once(network, images(1), 16, 2**40) == 16
    assert images_at_once(network, images(1), 16, None) == 16


@pytest.mark.parametrize(("size", "wanted"), [(0, 1), (1, 1), (5, 1), (7, 1)])
def test_any_batch_comes_down_to_single_images(size: int, wanted: int) -> None:
    assert images_at_once(ready(wide()), images(1), size, 1) == wanted


@pytest.mark.parametrize("at_once", [1, 3, 5, 12, 40])
@pytest.mark.parametrize("mine", [slice(0, 12), slice(4, 9), slice(3, 3)])
def test_gradients_of_parts_add_up_to_those_of_the_share(at_once: int, mine: slice) -> None:
    whole, parted = ready(wide()), ready(wide())
    parted.load_state_dict(whole.state_dict())
    x, y = images(12), torch.tensor([0, 1, 2, -1, -1, 3, 4, 0, 1, -1, 2, 3])

    def loss_of(network: nn.Module) -> object:
        def loss(a: Tensor, b: Tensor, parts: tuple[float, float]) -> Tensor:
            z = network(a)
            known = b >= 0
            total = z.square().mean() * parts[0] if len(a) else z.sum()
            if known.any():
                total = total + nn.functional.cross_entropy(z[known], b[known]) * parts[1]
            return total

        return loss

    wanted = backward_in_parts(loss_of(whole), x, y, mine, 100)  # type: ignore[arg-type]
    found = backward_in_parts(loss_of(parted), x, y, mine, at_once)  # type: ignore[arg-type]
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    for a, b in zip(whole.parameters(), parted.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6)


def trained(limit: int | None) -> tuple[QuantNetwork, int, list[str]]:
    network, said = quant_network(Plain, "w4a4"), []
    calibrate(network, [images(64, seed=1)])
    result = finetune(
        network,
        copy.deepcopy(float_graph(Plain).module),
        [lambda n, g: (torch.randn(n, 3, 8, 8, generator=g), torch.arange(n) % 5)],
        images(16, seed=2),
        dataclasses.replace(SETTINGS, memory_limit_bytes=limit),
        device=CPU,
        seed=0,
        progress=lambda _done, _total, text: said.append(text),
    )
    return network, result.images_at_once, said


def test_training_under_a_limit_gives_the_same_network_and_says_so() -> None:
    (whole, all_at_once, plain), (parted, few, said) = trained(None), trained(2**15)
    assert all_at_once == 12
    assert few < 12
    assert set(plain) == {"fine-tuning"}
    assert set(said) == {f"fine-tuning, {few} images at a time"}
    for name, qparams in whole.activation_qparams().items():
        found = parted.activation_qparams()[name]
        assert float(found.scale) == pytest.approx(float(qparams.scale), rel=1e-3)
