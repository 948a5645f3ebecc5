"""Widths per layer: raised layers, layers left in float, and nothing else changed."""

from __future__ import annotations

import dataclasses

import pytest
from export_grids import gemm_model, placed, weights_of
from export_networks import (
    EVERY_NETWORK,
    Depthwise,
    FreshlyMade,
    Residual,
    SharedModule,
    graph_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.float_onnx import FloatGraph
from fdda_deploy.exporters.placement import place
from fdda_deploy.exporters.placement_table import TABLE, TARGETS
from fdda_deploy.exporters.weight_layout import LEFT_BY_CHOICE
from fdda_deploy.quant.points import Placement
from fdda_deploy.quant.scheme import scheme_from_name

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
each_network = pytest.mark.parametrize("kind", EVERY_NETWORK, ids=lambda kind: kind.__name__)
each_target = pytest.mark.parametrize("target", TARGETS)


def with_widths(
    graph: FloatGraph,
    widths: dict[str, int | None],
    scheme: str = "w4a4",
    target: str = "trt",
    first_last_bits: int = 8,
) -> Placement:
    return place(
        graph.proto,
        scheme_from_name(scheme, first_last_bits),
        target,
        torch_tensors=graph.fx_from_tensor,
        parameters=graph.parameter_from_initializer,
        widths=widths,
    )


def own_widths(placement: Placement) -> dict[str, int | None]:
    return {node: point.num_bits for point in placement.weights for node in point.consumers}


def bits_of(placement: Placement) -> dict[str, int]:
    return {point.name: point.num_bits for point in placement.activations}


def readers_of(placement: Placement) -> set[tuple[str, int]]:
    return {edge for point in placement.activations for edge in point.consumers}


def skips_of(placement: Placement) -> dict[str, str]:
    """The quantized skip by the addition that reads it."""
    return {
        node: point.tensor
        for point in placement.activations
        for node, _ in point.consumers
        if node.startswith("Add")
    }


@each_network
@each_target
@pytest.mark.parametrize("scheme", ["w4a4", "w4a16", "w8a8"])
def test_no_widths_and_the_schemes_own_widths_are_the_same(kind, target, scheme):
    graph = graph_of(kind)
    plain = placed(graph, scheme, target)
    assert with_widths(graph, {}, scheme, target) == plain
    assert with_widths(graph, own_widths(plain), scheme, target) == plain


@each_target
def test_a_raised_layer_gets_its_weight_and_its_input_at_eight_bits(target):
    graph = graph_of(Residual)
    plain = placed(graph, "w4a4", target)
    raised = with_widths(graph, {"conv1/Conv": 8}, "w4a4", target)
    before, after = weights_of(plain), weights_of(raised)
    assert {name for name in after if after[name] != before[name]} == {"conv1.weight"}
    assert after["conv1.weight"].num_bits == 8
    changed = {t: bits for t, bits in bits_of(raised).items() if bits != bits_of(plain)[t]}
    output = {"conv1/Conv_output"} if target == "ort-cpu" else set()
    assert changed == dict.fromkeys({"Relu_output", *output}, 8)
    assert readers_of(raised) == readers_of(plain)
    # one pair of eight bits now does for the convolution and the skip
    assert "Relu_output/skip" not in bits_of(raised)


def test_the_input_keeps_the_schemes_bits_where_those_are_more():
    graph = graph_of(Residual)
    raised = with_widths(graph, {"conv1/Conv": 6, "conv2/Conv": 5}, "w3a5")
    assert weights_of(raised)["conv1.weight"].num_bits == 6
    assert bits_of(raised)["Relu_output"] == 6
    assert bits_of(raised)["Relu_1_output"] == 5


def test_the_skip_of_a_raised_layer_is_raised_with_it():
    graph = graph_of(Residual, 1)
    skip, main = "down/Conv_output", "conv2/Conv"
    assert bits_of(with_widths(graph, {main: 8}, "w4a4", "ort-cpu"))[skip] == 8
    assert bits_of(with_widths(graph, {}, "w4a4", "ort-cpu"))[skip] == 4
    assert bits_of(with_widths(graph, {}, "w4a4", "trt"))[skip] == 8, "as any skip there"


@each_network
@pytest.mark.parametrize("target", ["trt", "rtx"])
def test_every_layer_raised_leaves_no_narrow_grid(kind, target):
    graph = graph_of(kind)
    raised = dict.fromkeys(own_widths(placed(graph, "w4a4", target)), 8)
    placement = with_widths(graph, raised, "w4a4", target)
    wide = placed(graph, "w8a8", target)
    assert placement.weights == wide.weights
    assert [(p.name, p.num_bits, sorted(p.consumers)) for p in placement.activations] == [
        (p.name, p.num_bits, sorted(p.consumers)) for p in wide.activations
    ]


def test_a_tensor_with_two_readers_gets_the_most_that_is_wanted():
    graph = graph_of(Residual)
    raised = with_widths(graph, {"down/Conv": 8})
    assert bits_of(raised)["Relu_1_output"] == 8
    widths = {name: point.num_bits for name, point in weights_of(raised).items()}
    assert (widths["down.weight"], widths["conv2.weight"]) == (8, 4)


def test_a_width_that_is_named_wins_over_first_and_last():
    widths = weights_of(with_widths(graph_of(Residual), {"stem/Conv": 5, "fc/Gemm": 3}))
    assert (widths["stem.weight"].num_bits, widths["fc.weight"].num_bits) == (5, 3)


@each_target
def test_a_layer_left_in_float_has_no_point_and_a_reason(target):
    graph = graph_of(Residual)
    left = with_widths(graph, {"conv1/Conv": None}, "w8a8", target)
    assert left.left_float == (("conv1/Conv", LEFT_BY_CHOICE),)
    assert "conv1.weight" not in weights_of(left)
    assert ("conv1/Conv", 0) not in readers_of(left)


def test_of_a_projection_shortcut_the_quantized_convolution_is_the_one_that_fuses():
    graph = graph_of(Residual, 1)
    assert skips_of(placed(graph, "w8a8", "trt"))["Add_1"] == "down/Conv_output"
    left = with_widths(graph, {"conv2/Conv": None}, "w8a8")
    assert skips_of(left)["Add_1"] == "conv2/Conv_output"
    neither = with_widths(graph, {"conv2/Conv": None, "down/Conv": None}, "w8a8")
    assert "Add_1" not in skips_of(neither)


@each_target
def test_everything_in_float_leaves_the_graph_as_it_is(target):
    graph = graph_of(Residual)
    names = own_widths(placed(graph, "w4a8", target))
    left = with_widths(graph, dict.fromkeys(names), "w4a8", target)
    assert (left.weights, left.activations) == ((), ())
    assert left.left_float == tuple((name, LEFT_BY_CHOICE) for name in names)


def test_a_reason_of_the_target_stands_before_the_choice():
    left = with_widths(graph_of(Depthwise), {"depthwise/Conv": None}, "w8a8", "rtx")
    assert left.left_float == (("depthwise/Conv", TABLE["depthwise-float"].reason),)
    raised = with_widths(graph_of(Depthwise), {"depthwise/Conv": 8}, "w4a8", "rtx")
    assert "depthwise.weight" not in weights_of(raised)


def test_readers_of_one_weight_share_the_widest_and_leave_it_in_float_together():
    graph = graph_of(SharedModule)
    raised = weights_of(with_widths(graph, {"block/Conv_1": 8}))["block.weight"]
    assert (raised.num_bits, raised.consumers) == (8, ("block/Conv", "block/Conv_1"))
    left = with_widths(graph, {"block/Conv": 8, "block/Conv_1": None})
    assert {name for name, _ in left.left_float} == {"block/Conv", "block/Conv_1"}
    assert "block.weight" not in weights_of(left)


def test_weight_only_layers_take_their_own_width_and_storage():
    points = weights_of(with_widths(graph_of(FreshlyMade), {"fc1/Gemm": 8}, "w4a16", "rtx"))
    assert (points["fc1.weight"].num_bits, points["fc1.weight"].storage) == (8, "int8")
    assert points["fc2.weight"].num_bits == 8, "the last layer"
    narrow = weights_of(with_widths(graph_of(Depthwise), {"depthwise/Conv": 4}, "w4a16", "rtx"))
    assert (narrow["depthwise.weight"].num_bits, narrow["depthwise.weight"].storage) == (4, "int4")


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        (
            {"conv1/Cnov": 8},
            r"^conv1/Cnov: no layer with weights has this name\. Did you mean 'conv1/Conv'\?",
        ),
        ({"Add": None}, "^Add: no layer with weights has this name"),
        ({"conv1/Conv": 9}, r"^conv1/Conv: 9-bit weights; want 2 to 8 bits, or None for float\.$"),
        ({"conv1/Conv": 1}, "^conv1/Conv: 1-bit weights"),
    ],
)
def test_widths_that_fit_no_layer_are_refused(widths, message):
    with pytest.raises(ExportError, match=message):
        with_widths(graph_of(Residual), widths)


def test_a_plain_graph_without_a_torch_twin_takes_widths_too():
    placement = place(
        gemm_model(64),
        dataclasses.replace(scheme_from_name("w4a16"), first_last_bits=4),
        "rtx",
        torch_tensors=("input",),
        parameters={"w": ("w", False)},
        widths={"fc": 8},
    )
    assert (placement.weights[0].num_bits, placement.weights[0].block_size) == (8, None)


@settings(max_examples=30)
@given(
    data=st.data(),
    kind=st.sampled_from([Residual, SharedModule, Depthwise]),
    target=st.sampled_from(TARGETS),
)
def test_under_any_widths_both_operands_of_a_product_are_quantized_or_neither(data, kind, target):
    graph = graph_of(kind)
    names = [node.name for node in graph.proto.graph.node if node.op_type in WEIGHTED]
    names = [name for name in names if name in own_widths(placed(graph, "w4a4", target))]
    choice = st.sampled_from([None, 4, 8])
    widths = {name: data.draw(choice, label=name) for name in names}
    placement = with_widths(graph, widths, "w4a4", target)
    quantized = own_widths(placement)
    left = dict(placement.left_float)
    for name in names:
        assert ((name, 0) in readers_of(placement)) == (name in quantized) != (name in left)
        if name in quantized:
            assert quantized[name] >= (widths[name] or 0)
    for point in placement.activations:
        wanted = [widths.get(node) or 4 for node, index in point.consumers if index == 0]
        assert point.num_bits >= max(wanted, default=4)
        assert point.consumers
