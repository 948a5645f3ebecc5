"""Centering: the function stays, and each channel of a linear tensor has zero in its middle."""

from __future__ import annotations

import copy

import pytest
import torch
from equalize_networks import SHAPE, Inverted, Multilayer, Residual, batches, uneven
from torch import Tensor, fx, nn

from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.network import graph_module_from, trace
from fdda_deploy.pipeline.quantization.equalize import equalize


class Chain(nn.Module):
    """Two sums in a row, each with a layer of its own, and a projection where both terms are."""

    def __init__(self, reader: nn.Module | None = None, *, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.one, self.two = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1, bias=bias)
        self.left, self.right = nn.Conv2d(6, 8, 1), nn.Conv2d(6, 8, 1)
        self.head = nn.Conv2d(8, 5, 1) if reader is None else reader

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.one(x)
        x = self.two(x) + x
        return torch.relu(self.head(self.left(x) + self.right(x)))


def graph(module: nn.Module) -> fx.GraphModule:
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.uniform_(layer.bias, 1, 3)  # far off the middle
    return graph_module_from(trace(module.eval(), SHAPE))


def centered(module: fx.GraphModule) -> fx.GraphModule:
    copied = copy.deepcopy(module)
    equalize(copied, batches(), dense=0.0, depthwise=0.0, center=True)
    return copied


def spans(module: fx.GraphModule) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}

    class Walk(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if n.op == "call_function" and isinstance(result, Tensor) and result.ndim == 4:
                found[n.name] = result.amin((0, 2, 3)), result.amax((0, 2, 3))
            return result

    with torch.no_grad():
        Walk(module).run(torch.cat(batches()))
    return found


def off_center(span: tuple[Tensor, Tensor]) -> float:
    low, high = span
    return float(((low + high).abs() / (high - low)).max())


@pytest.mark.parametrize("kind", [Inverted, Residual, Multilayer, Chain])
@pytest.mark.parametrize("seed", range(3))
def test_the_function_stays(kind, seed):
    module = uneven(kind, seed) if kind is not Chain else graph(Chain())
    x = torch.cat(batches(3, seed=seed + 5))
    with torch.no_grad():
        wanted, found = module(x), centered(module)(x)
    assert (wanted - found).abs().max() < 2e-5 * wanted.abs().max()


def test_whatever_a_layer_reads_between_layers_and_sums_is_centered():
    before, after = spans(graph(Chain())), spans(centered(graph(Chain())))
    for name in ("conv2d", "add", "add_1", "add_2"):
        assert off_center(before[name]) > 0.1
        assert off_center(after[name]) < 1e-5


def test_equalising_goes_on_with_the_ranges_that_are_left():
    module = graph(Chain())
    equalize(module, batches(), dense=1.0, center=True)
    # what a layer reads: with exponent 1 all channels of all tied tensors reach the widest
    tied = [spans(module)[name] for name in ("conv2d", "add", "add_1")]
    largest = torch.stack([torch.maximum(-low, high) for low, high in tied]).amax(0)
    torch.testing.assert_close(largest, largest.max().expand(6), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "module",
    [
        Chain(nn.Conv2d(8, 5, 3, padding=1)),
        Chain(nn.Conv2d(8, 5, 3, padding="same")),
    ],
    ids=["padded", "same"],
)
def test_what_a_padded_layer_reads_stays_where_it_is(module):
    before, after = spans(graph(module)), spans(centered(graph(module)))
    assert off_center(after["add_2"]) == pytest.approx(off_center(before["add_2"]), rel=1e-3)
    assert off_center(after["add_1"]) < 1e-5, "another group"


def test_a_group_with_a_layer_that_has_no_bias_stays_where_it_is():
    module = Chain(bias=False)
    before, after = spans(graph(module)), spans(centered(graph(module)))
    assert off_center(after["add"]) == off_center(before["add"])


def test_it_is_off_unless_asked_for():
    module = graph(Chain())
    copied = copy.deepcopy(module)
    equalize(copied, batches(), dense=0.0, depthwise=0.0)
    assert all(
        torch.equal(a, b) for a, b in zip(module.parameters(), copied.parameters(), strict=True)
    )


def test_clips_and_centering_exclude_each_other():
    with pytest.raises(ConfigError, match=r"center: not with clips, .* around the old zero"):
        equalize(graph(Chain()), batches(), clips={"conv2d": torch.ones(3)}, center=True)
