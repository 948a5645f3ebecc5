"""A fair sample of a tensor's values, each with what the prediction owes to it."""

from __future__ import annotations

import pytest
import torch
from quant_networks import Corner, activations_of, float_graph
from torch import Tensor

from fdda_deploy.pipeline.quantization.fisher import AT_ONCE
from fdda_deploy.pipeline.quantization.observers import NUM_BINS
from fdda_deploy.pipeline.quantization.ranges import activation_qparams
from fdda_deploy.pipeline.quantization.weighed_values import (
    SAMPLES_PER_IMAGE,
    WeighedValues,
    spread_positions,
    weighed_values,
)


def drawn(*size: int, seed: int = 3) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def sampled(images: Tensor, **more: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the stem's ReLU gives, and the values and weights that are sampled of it."""
    module = float_graph(Corner).module
    (node,) = (node for node in module.graph.nodes if "relu" in node.name)
    found = weighed_values(module, [node.name], torch.split(images, AT_ONCE), **more)[node.name]
    return activations_of(module, images)[node.name], found.values, found.weights.float()


@pytest.mark.parametrize("each", [1, 9, 63, 3136])
@pytest.mark.parametrize("cut", [1, 3])
def test_positions_do_not_depend_on_the_batches(each: int, cut: int):
    whole = spread_positions(0, 12, each)
    parts = [spread_positions(first, cut, each) for first in range(0, 12, cut)]
    assert torch.equal(whole, torch.cat(parts))
    assert whole.shape == (12, min(SAMPLES_PER_IMAGE, each))
    assert int(whole.min()) >= 0
    assert int(whole.max()) < each


def test_every_place_of_an_image_is_sampled_sometimes():
    assert set(spread_positions(0, 200, 64).flatten().tolist()) == set(range(64))


def test_values_are_those_of_the_tensor_channel_by_channel():
    relu, values, weights = sampled(drawn(6, 3, 4, 4))  # sixteen places: all are taken
    assert torch.equal(values, relu.flatten(2).transpose(0, 1).flatten(1))
    assert weights.shape == values.shape


def test_only_values_that_the_prediction_reads_count():
    _, _, weights = sampled(drawn(6, 3, 4, 4))
    maps = weights.reshape(6, 6, 4, 4)
    assert bool((maps[:, :, 2:] == 0).all())
    assert bool((maps[:, :, :, 2:] == 0).all())
    assert bool((maps[:, :, :2, :2] > 0).any(dim=3).any(dim=2).any(dim=0).all())


def test_each_image_counts_alike():
    _, _, weights = sampled(drawn(6, 3, 4, 4) * torch.logspace(-2, 2, 6).reshape(-1, 1, 1, 1))
    by_image = weights.reshape(6, 6, 16).mean((0, 2))
    torch.testing.assert_close(by_image, torch.ones(6), rtol=1e-2, atol=0)  # none is cut at 100


def test_a_weight_is_the_squared_gradient_of_the_drawn_class():
    module, x = float_graph(Corner).module, drawn(1, 3, 4, 4)
    (name,) = (node.name for node in module.graph.nodes if "relu" in node.name)
    found = weighed_values(module, [name], [x], seed=5)[name].weights.float()
    gradients = module.get_parameter("head.weight").detach()  # (classes, C)
    with torch.no_grad():
        p = module(x).softmax(1)
    wanted = []
    for y in range(4):  # d log p(y) / d mean = W_y - p W, over the four places of each channel
        g = (gradients[y] - p[0] @ gradients) / 4
        share = g.square() / (4 * g.square().sum() / (6 * 16))
        wanted.append(share)
    corner = found.reshape(6, 4, 4)[:, 0, 0]
    assert min(float((corner - share).abs().max()) for share in wanted) < 1e-2


def test_a_seed_draws_the_same_classes_again():
    x = drawn(8, 3, 4, 4)
    first, second, other = (sampled(x, seed=seed)[2] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_what_no_prediction_depends_on_and_what_is_not_finite_is_left_out():
    module = float_graph(Corner).module
    names = [node.name for node in module.graph.nodes]
    x = drawn(2, 3, 4, 4)
    assert set(weighed_values(module, ["no such node"], [x])) == set()
    found = weighed_values(module, names, [x])
    assert all(torch.isfinite(sample.weights).all() for sample in found.values())
    x[0, 0, 0, 0] = float("nan")
    assert weighed_values(module, names, [x]) == {}


@pytest.mark.parametrize("method", ["mse", "lp"])
def test_what_is_far_out_and_worth_nothing_sets_no_range(method: str):
    values = drawn(4, 2000).abs()
    far = torch.full((4, 50), 90.0)
    ones = torch.ones_like(values)
    alone = WeighedValues(values, ones.half(), 0.0, float(values.max()))
    both = torch.cat([values, far], dim=1)
    counting = WeighedValues(both, torch.ones_like(both).half(), 0.0, 90.0)
    weighed = WeighedValues(both, torch.cat([ones, 0 * far], dim=1).half(), 0.0, 90.0)
    wanted, plain, found = (
        float(activation_qparams(sample.histogram(), 4, method).scale)
        for sample in (alone, counting, weighed)
    )
    assert plain > 3 * wanted
    assert found == pytest.approx(wanted, rel=0.05)


def test_a_histogram_counts_weights_and_keeps_the_extremes():
    sample = WeighedValues(
        torch.tensor([[-3.5, 0.5], [0.5, 3.5]]), torch.tensor([[1.0, 2], [3, 0]]).half(), -4.0, 5.0
    )
    found = sample.histogram(shifted=True)
    assert (found.low, found.high, found.shifted, found.weighed) == (-4.0, 5.0, True, True)
    held = found.counts > 0
    width = 10 / NUM_BINS
    assert found.centers[held] == pytest.approx([-3.5, 0.5], abs=width)
    assert found.counts[held].tolist() == [1.0, 5.0]


def test_a_tensor_of_nothing_has_a_grid():
    sample = WeighedValues(torch.zeros(2, 8), torch.ones(2, 8).half(), 0.0, 0.0)
    assert float(activation_qparams(sample.histogram(), 8, "mse").scale) > 0


def test_the_extremes_are_those_of_all_values():
    x = drawn(3, 3, 16, 16)  # 256 places, of which 32 are sampled
    module = float_graph(Corner).module
    (name,) = (node.name for node in module.graph.nodes if node.op == "placeholder")
    found = weighed_values(module, [name], torch.split(x, 2))[name]
    assert (found.low, found.high) == (float(x.min()), float(x.max()))
    assert float(found.values.max()) < found.high
