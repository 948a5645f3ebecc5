"""Positions count by what the prediction owes to them, each image alike."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from quant_networks import Corner, Plain, Sequence, float_graph
from rounded_networks import calibrated, error, rounded
from torch import Tensor, nn

from fdda_deploy.pipeline.quantization.importance import output_importance
from fdda_deploy.pipeline.quantization.moments import Moments
from fdda_deploy.pipeline.quantization.output_curvature import DAMPING
from fdda_deploy.pipeline.quantization.patches import LayerShape, Positions


class Depthwise(nn.Module):
    """A depthwise layer whose last channel nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.head = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.filters(x))[:, :2].square().mean((2, 3)))


def drawn(*size: int, seed: int = 3) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def shapes_of(module: torch.fx.GraphModule) -> dict[str, LayerShape]:
    found = {}
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.conv2d.default:
            weight = module.get_parameter(str(node.args[1].target))
            found[node.name] = LayerShape(
                tuple(weight.shape),
                groups=weight.shape[0] if weight.shape[1] == 1 else 1,
                spatial_dims=2,
            )
        elif node.target is torch.ops.aten.linear.default:
            weight = module.get_parameter(str(node.args[1].target))
            found[node.name] = LayerShape(tuple(weight.shape))
    return found


def importance(
    module: torch.fx.GraphModule, batches: list[Tensor], wanted: int = 10**4, seed: int = 0
) -> dict[str, Tensor]:
    shapes = shapes_of(module)
    count = sum(map(len, batches))
    positions = Positions(dict.fromkeys(shapes, wanted), count, seed)
    found = output_importance(module, shapes, positions, batches, seed=seed)
    return dict(found.shares)


def test_only_positions_that_the_prediction_reads_count() -> None:
    module = float_graph(Corner).module
    (stem, _) = shapes_of(module)
    found = importance(module, [drawn(5, 3, 8, 8)])
    maps = found[stem].float().reshape(5, 8, 8)  # one group
    assert (maps[:, 2:] == 0).all()
    assert (maps[:, :, 2:] == 0).all()
    assert (maps[:, :2, :2] > 0).any(dim=2).any(dim=1).all()


@pytest.mark.parametrize("kind", [Plain, Sequence, Corner])
def test_every_image_counts_alike(kind: type[nn.Module]) -> None:
    module = float_graph(kind).module
    images = drawn(12, 3, 8, 8)
    found = importance(module, list(torch.split(images, 5)))
    assert set(found) == set(shapes_of(module))
    for name, maps in found.items():
        assert len(maps) == shapes_of(module)[name].groups
        means = maps.float().reshape(len(maps), 12, -1).mean(dim=(0, 2))
        assert torch.allclose(means, torch.ones(12), atol=2e-3)


def test_positions_asked_for_are_those_of_all() -> None:
    module, images = float_graph(Plain).module, [drawn(6, 3, 8, 8)]
    shapes = shapes_of(module)
    whole = importance(module, images)
    few = importance(module, images, wanted=5)
    positions = Positions(dict.fromkeys(shapes, 5), 6, 0)
    for name, found in few.items():
        each = whole[name].shape[1] // 6
        assert torch.equal(found, whole[name][:, positions.of(name, 0, 6, each)])
    assert any(found.shape[1] == 30 < whole[name].shape[1] for name, found in few.items())


def test_each_depthwise_filter_has_its_own() -> None:
    module = float_graph(Depthwise).module
    (name, *_) = shapes_of(module)
    found = importance(module, [drawn(4, 3, 8, 8)])[name].float()
    assert found.shape[0] == 3
    assert (found[2] == 0).all(), "nobody reads the last channel"
    assert (found[:2].mean(dim=1) > 0).all()


def test_importance_is_the_squared_gradient_of_a_drawn_class() -> None:
    module = float_graph(Corner).module
    images = drawn(3, 3, 8, 8)
    (stem, head) = shapes_of(module)
    shapes = shapes_of(module)
    positions = Positions(dict.fromkeys(shapes, 10**4), 3, 0)
    both = output_importance(module, shapes, positions, [images], coupled=[stem], seed=7)
    found = both.shares
    state = dict(module.named_parameters())
    weight, bias = (value for name, value in state.items() if "stem" in name)
    z = nn.functional.conv2d(images, weight, bias, padding=1).detach().requires_grad_(True)
    rest = [value for name, value in state.items() if "head" in name]
    log_p = nn.functional.linear(torch.relu(z)[:, :, :2, :2].mean((2, 3)), *rest).log_softmax(1)
    classes = torch.multinomial(log_p.detach().exp(), 1, generator=torch.Generator().manual_seed(7))
    (g,) = torch.autograd.grad(log_p.gather(1, classes).sum(), z)
    energy = g.square().sum(1).flatten(1)
    wanted = energy / energy.mean(dim=1, keepdim=True)
    assert torch.allclose(found[stem][0].float(), wanted.flatten(), rtol=2e-3, atol=1e-3)
    assert (found[head] == 1).all(), "one position an image"
    rows = g.flatten(2).mT[:, ::2]  # 64 positions: every second one
    by_image = rows / rows.flatten(1).norm(dim=1)[:, None, None]
    wanted = by_image.square().sum((0, 1))
    wanted += DAMPING * wanted.mean()
    assert set(both.curvature) == {stem}
    assert torch.allclose(both.curvature[stem].diagonal(), wanted, rtol=1e-3)


def test_images_that_nothing_depends_on_count_evenly_and_parameters_get_no_gradient() -> None:
    module = copy.deepcopy(float_graph(Corner).module)  # that one is everybody's
    for parameter in module.parameters():
        parameter.requires_grad_(True)
        parameter.data.zero_()
    found = importance(module, [drawn(2, 3, 8, 8)])
    assert all((maps == 1).all() for maps in found.values())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_shares_multiply_the_weight_of_samples() -> None:
    x, shares = drawn(2, 60, 3), torch.cat([torch.full((20,), 3.0), torch.ones(40)])[None]
    weighted, repeated = Moments(), Moments()
    weighted.add(x, x, shares)
    # Later batches share the first one's median and origin, so repetition is what a share says.
    repeated.add(x, x)
    for _ in range(2):
        repeated.add(x[:, :20], x[:, :20])
    assert np.allclose(weighted.result().mean_x, repeated.result().mean_x, atol=1e-6)
    assert np.allclose(weighted.result().cov_xhat, repeated.result().cov_xhat, atol=1e-6)


def test_shares_of_nothing_leave_the_moments_finite() -> None:
    x = drawn(1, 30, 3)
    moments = Moments()
    moments.add(x, x, torch.zeros(1, 30))
    assert moments.result().cov_xhat.isfinite().all()


def test_rounding_sees_it_and_can_do_without() -> None:
    with_it, without = calibrated(Plain, "w3a8"), calibrated(Plain, "w3a8")
    rounded(with_it, Plain)
    rounded(without, Plain, importance=False)
    names = list(with_it.integer_weights())
    assert any(
        (with_it.integer_weights()[n][0] != without.integer_weights()[n][0]).any() for n in names
    )
    assert error(with_it, Plain) < 2 * error(without, Plain)
