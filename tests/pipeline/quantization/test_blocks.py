"""Blocks: a graph is cut where one tensor is live, and layers fall into the right block."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from quant_networks import (
    ChannelsLast,
    Plain,
    Sequence,
    Shared,
    float_graph,
    images,
    quant_network,
)
from torch import Tensor, fx, nn

from fdda_deploy.pipeline.network import graph_module_from, trace
from fdda_deploy.pipeline.quantization.blocks import Block, extract, find_blocks

SHAPE = (3, 8, 8)


class Windows(nn.Module):
    """Attention over windows: between the two reshapes the first axis is not the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inside = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)
        self.offset = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = self.stem(x).reshape(n, 4, 4, 16).permute(0, 2, 3, 1).reshape(n * 4, 16, 4)
        x = self.inside(torch.relu(x))
        x = x.reshape(n, 4, 16, 4).permute(0, 3, 1, 2) + self.offset.expand(n, -1, -1, -1)
        return self.head(x.mean((2, 3)))


class NoCut(nn.Module):
    """A shortcut from the input to the end."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(torch.relu(self.one(x)))


class TwoOutputs(nn.Module):
    """The logits, and a tensor from the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        middle = self.one(x)
        return self.two(middle), middle


class Halves(nn.Module):
    """Split in two channel halves: a tuple is no tensor to cut at."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.one(x).chunk(2, dim=1)
        return self.two(left * right)


def traced(kind: type[nn.Module]) -> fx.GraphModule:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return graph_module_from(trace(kind(), SHAPE))


def assert_chain(graph: fx.GraphModule, found: list[Block]) -> None:
    """The blocks lead from the input to the output and hold every layer once, in order."""
    nodes = list(graph.graph.nodes)
    assert found[0].source == next(node.name for node in nodes if node.op == "placeholder")
    assert found[-1].result == nodes[-1].all_input_nodes[0].name
    assert all(a.result == b.source for a, b in pairwise(found))
    layers = [n.name for n in nodes if n.name.startswith(("conv", "linear"))]
    assert [name for block in found for name in block.layers] == layers


def assert_same_function(graph: fx.GraphModule, found: list[Block]) -> None:
    """The blocks in turn compute what the graph computes, at a batch that was not traced."""
    value = images(5)
    wanted = graph(value)
    for block in found:
        value = extract(graph, block.source, block.result)(value)
    assert torch.equal(value, wanted[0] if isinstance(wanted, tuple) else wanted)


@pytest.mark.parametrize("kind", [Plain, Shared, ChannelsLast, Sequence])
def test_blocks_in_turn_are_the_folded_network(kind):
    graph = float_graph(kind).module
    assert_chain(graph, find_blocks(graph))
    assert_same_function(graph, find_blocks(graph))


@pytest.mark.parametrize("kind", [Windows, NoCut, Halves])
def test_blocks_in_turn_are_any_network(kind):
    graph = traced(kind)
    assert_chain(graph, find_blocks(graph))
    assert_same_function(graph, find_blocks(graph))


def test_a_residual_branch_is_one_block_and_its_tail_joins_it():
    assert find_blocks(float_graph(Plain).module) == [
        Block("x", "relu", ("conv2d",)),
        Block("relu", "mean", ("conv2d_1", "conv2d_2")),
        Block("mean", "linear", ("linear",)),
    ]


def test_a_graph_without_a_cut_is_one_block():
    assert find_blocks(traced(NoCut)) == [Block("x", "add", ("conv2d", "conv2d_1"))]


def test_no_cut_where_the_first_axis_is_not_the_batch():
    assert [block.source for block in find_blocks(traced(Windows))] == ["x", "permute", "mean"]


def test_no_cut_at_a_tuple():
    graph = traced(Halves)
    by_name = {node.name: node for node in graph.graph.nodes}
    ends = [by_name[block.result] for block in find_blocks(graph)]
    assert all(isinstance(node.meta["val"], Tensor) for node in ends)


def test_of_several_outputs_the_first_is_the_result():
    graph = traced(TwoOutputs)
    found = find_blocks(graph)
    assert found[-1].result == "conv2d_1"
    assert_same_function(graph, found)


def test_a_network_that_returns_its_input_is_one_empty_block():
    assert find_blocks(traced(nn.Identity)) == [Block("input_1", "input_1", ())]


def test_weight_quantizers_do_not_keep_a_graph_from_being_cut():
    network = quant_network(Plain, "w4a8")
    float_layers = [block.layers for block in find_blocks(float_graph(Plain).module)]
    assert [block.layers for block in find_blocks(network.graph_module)] == float_layers
