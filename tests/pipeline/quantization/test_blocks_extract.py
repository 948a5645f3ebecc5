"""A part of a graph as a function: it shares what it reads and leaves its argument alone."""

from __future__ import annotations

import pytest
import torch
from quant_networks import ChannelsLast, Plain, float_graph, images, quant_network
from torch import Tensor, nn

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.network import graph_module_from, trace
from fdda_deploy.pipeline.quantization.blocks import extract, find_blocks
from fdda_deploy.pipeline.quantization.calibrate import calibrate


class InPlace(nn.Module):
    """Works in place on the source of a part: directly, and through a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Linear(4 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu_().flatten(1).mul_(2))


def test_parts_of_a_quantized_network_compute_its_blocks():
    network = quant_network(Plain, "w4a4")
    calibrate(network, [images(8)], observer="minmax")
    value = images(5)
    wanted = network(value)
    for block in find_blocks(float_graph(Plain).module):
        value = extract(network.graph_module, block.source, block.result)(value)
    assert torch.equal(value, wanted)


def test_a_source_is_quantized_by_the_part_that_reads_it():
    network = quant_network(Plain, "w4a4")
    block = find_blocks(float_graph(Plain).module)[1]
    part = extract(network.graph_module, block.source, block.result)
    first = next(
        node
        for node in part.graph.nodes
        if node.op == "call_module" and node.args[0].op == "placeholder"
    )
    assert part.get_submodule(str(first.target)) in network.activation_quantizers.values()


def test_parameters_and_quantizers_are_shared():
    network = quant_network(Plain, "w4a8")
    part = extract(network.graph_module, "x", "conv2d")
    assert part.get_parameter("stem.weight") is network.graph_module.get_parameter("stem.weight")
    before = part(images(2))
    calibrate(network, [images(8)], observer="minmax")
    after = part(images(2))
    assert not torch.equal(before, after)
    with torch.no_grad():
        network.graph_module.get_parameter("stem.bias").add_(1)
    torch.testing.assert_close(part(images(2)), after + 1)


def test_the_same_node_twice_is_the_identity():
    x = images(3)
    assert extract(float_graph(Plain).module, "relu", "relu")(x) is x


def test_a_batch_size_is_read_from_the_tensor_given():
    graph = float_graph(ChannelsLast).module
    value = torch.randn(7, 8, 8, 16, generator=torch.Generator().manual_seed(0))
    assert extract(graph, "relu_1", "view")(value).shape == (7, 64, 8)


@pytest.mark.parametrize(("source", "result"), [("conv2d", "linear"), ("relu_", "linear")])
def test_the_argument_is_never_written_to(source, result):
    graph = graph_module_from(trace(InPlace(), (3, 8, 8)))
    given = extract(graph, "x", source)(images(2)).detach()
    before = given.clone()
    found = extract(graph, source, result)(given)
    assert torch.equal(given, before)
    torch.testing.assert_close(found, graph(images(2)))


def test_gradients_reach_the_argument():
    value = torch.randn(2, 8, 8, 8, requires_grad=True)
    extract(float_graph(Plain).module, "relu", "mean")(value).sum().backward()
    assert value.grad is not None
    assert value.grad.abs().sum() > 0


def test_an_unknown_node_is_named():
    with pytest.raises(CalibrationError, match=r"^nowhere: no node of that name in the graph\."):
        extract(float_graph(Plain).module, "x", "nowhere")


def test_a_result_that_needs_more_than_the_source_is_refused():
    with pytest.raises(CalibrationError, match=r"^add: needs more than the value of conv2d_1\."):
        extract(float_graph(Plain).module, "conv2d_1", "add")
