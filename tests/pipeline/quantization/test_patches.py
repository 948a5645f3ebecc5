"""Rows of inputs times rows of weights are the layer's outputs, for every way a layer reads."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor, fx, nn

from fdda_deploy.pipeline.quantization.patches import (
    MAX_POSITIONS,
    MIN_POSITIONS,
    LayerShape,
    Positions,
    input_rows,
    layer_shape,
    num_positions,
    output_rows,
    output_size,
    sampled_positions,
)

LAYERS = {
    "3 x 3": (nn.Conv2d(6, 8, 3, bias=False), (3, 6, 9, 7)),
    "strided and padded": (nn.Conv2d(6, 8, (3, 5), 2, (1, 2), bias=False), (3, 6, 9, 11)),
    "dilated": (nn.Conv2d(6, 8, 3, padding=2, dilation=(2, 1), bias=False), (3, 6, 9, 9)),
    "in groups": (nn.Conv2d(6, 9, 3, groups=3, bias=False), (3, 6, 8, 8)),
    "depthwise": (nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), (3, 6, 8, 8)),
    "1 x 1": (nn.Conv2d(6, 8, 1, bias=False), (3, 6, 5, 5)),
    "along one axis": (nn.Conv1d(6, 8, 3, 2, 1, bias=False), (3, 6, 15)),
    "linear": (nn.Linear(6, 8, bias=False), (3, 6)),
    "linear over tokens": (nn.Linear(6, 8, bias=False), (3, 4, 5, 6)),
}


def traced(module: nn.Module, x: Tensor) -> fx.Node:
    """The one node of ``module`` that has a weight."""
    program = torch.export.export(module.eval(), (x,)).module()
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    return next(
        node for node in nodes if "conv" in str(node.target) or "linear" in str(node.target)
    )


@pytest.mark.parametrize("name", LAYERS)
def test_rows_multiply_to_the_layers_outputs(name: str) -> None:
    module, size = LAYERS[name]
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    weight = module.weight.detach()
    shape = layer_shape(traced(module, x), tuple(weight.shape))
    assert shape is not None
    output = module(x).detach()
    positions = sampled_positions(output, shape, torch.Generator().manual_seed(1))
    wanted = output_rows(output, shape, positions)
    inputs = input_rows(x, output.shape, shape, positions)
    found = inputs @ weight.flatten(1).reshape(shape.groups, -1, inputs.shape[2]).mT
    assert wanted.shape[:2] == (shape.groups, len(positions))
    assert torch.allclose(found, wanted, atol=1e-5)


def test_large_maps_are_sampled_as_often_in_each_image() -> None:
    shape = LayerShape((16, 16, 3, 3), spatial_dims=2)
    output = torch.arange(4).reshape(4, 1, 1, 1).expand(4, 16, 64, 64)
    positions = sampled_positions(output, shape, torch.Generator().manual_seed(0))
    assert len(positions) == num_positions(shape) == MAX_POSITIONS
    images = output_rows(output, shape, positions)[0, :, 0]
    assert torch.bincount(images).tolist() == [256] * 4


def test_wide_layers_are_watched_at_fewer_positions() -> None:
    assert num_positions(LayerShape((512, 512, 3, 3), spatial_dims=2)) == MIN_POSITIONS
    depthwise = LayerShape((960, 1, 3, 3), groups=960, spatial_dims=2)
    assert MIN_POSITIONS < num_positions(depthwise) < MAX_POSITIONS


def test_other_layers_are_not_known() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    added = graph.call_function(operator.add, (x, x))
    assert layer_shape(added, (3, 3)) is None
    named = graph.call_function(torch.ops.aten.linear.default, (x, x), {"bias": x})
    assert layer_shape(named, (3, 3)) is None


@pytest.mark.parametrize("name", LAYERS)
def test_output_sizes_are_the_layers(name: str) -> None:
    module, size = LAYERS[name]
    x = torch.zeros(size)
    shape = layer_shape(traced(module, x), tuple(module.weight.shape))
    assert shape is not None
    assert output_size(x.shape, shape) == module(x).shape


def test_positions_are_one_of_each_run_of_an_image() -> None:
    found = Positions({"a": 20}, 3, seed=0).of("a", 0, 3, 60)
    assert (found // 3).tolist() == list(range(60))
    assert found[:20].tolist() != (found[20:40] - 60).tolist()


def test_positions_are_the_same_in_batches_of_any_size() -> None:
    positions = Positions({"a": 7, "b": 7}, 12, seed=3)
    whole = positions.of("a", 0, 12, 50)
    parts = [positions.of("a", first, 4, 50) + 50 * first for first in (0, 4, 8)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(positions.of("b", 0, 12, 50), whole)
    assert not torch.equal(Positions({"a": 7}, 12, seed=4).of("a", 0, 12, 50), whole)


@pytest.mark.parametrize("each", [1, 4, 5])
def test_all_positions_are_taken_where_no_more_are_there(each: int) -> None:
    found = Positions({"a": 5}, 2, seed=0).of("a", 0, 2, each)
    assert found.tolist() == list(range(2 * each))
