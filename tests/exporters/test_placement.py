"""The placement table: every row on a network that shows it, and every refusal."""

from __future__ import annotations

import pytest
from export_grids import conv_model, gemm_model, place_plain, placed, weights_of
from export_networks import (
    EVERY_NETWORK,
    ComputedWeights,
    Depthwise,
    DepthwiseFirst,
    PadSliceConcat,
    PreActivation,
    Residual,
    SaidTwice,
    Transposed,
    exported,
    graph_of,
)
from onnx import helper
from torch import Tensor, nn

from fdda_deploy.errors import ConfigError, ExportError
from fdda_deploy.exporters.placement_table import TABLE, TARGETS
from fdda_deploy.quant.points import ActivationPoint, Placement


def activations_of(placement: Placement) -> dict[str, ActivationPoint]:
    return {point.name: point for point in placement.activations}


def edges_of(placement: Placement) -> set[tuple[str, int]]:
    return {edge for point in placement.activations for edge in point.consumers}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", EVERY_NETWORK, ids=lambda kind: kind.__name__)
def test_both_operands_of_a_product_are_quantized_or_neither(kind, target):
    graph = graph_of(kind)
    placement = placed(graph, "w8a8", target)
    quantized = {node for point in placement.weights for node in point.consumers}
    left = {node for node, _ in placement.left_float}
    for node in graph.proto.graph.node:
        if node.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
            assert ((node.name, 0) in edges_of(placement)) == (node.name in quantized)
            assert (node.name in quantized) != (node.name in left), node.name
    rows = {point.row for point in placement.activations}
    assert all(target in TABLE[row].targets for row in rows)


@pytest.mark.parametrize("target", TARGETS)
def test_network_input_is_quantized(target):
    points = activations_of(placed(graph_of(Residual), "w8a8", target))
    assert points["input"].row == "weighted-input"
    assert points["input"].consumers == (("stem/Conv", 0),)


@pytest.mark.parametrize("target", TARGETS)
def test_tensor_with_two_readers_is_one_point(target):
    points = activations_of(placed(graph_of(Residual), "w8a8", target))
    readers = [node for node, index in points["Relu_1_output"].consumers if index == 0]
    assert {"conv2/Conv", "down/Conv"} <= set(readers)


@pytest.mark.parametrize("target", ["trt", "rtx"])
def test_identity_skip_is_quantized_and_the_convolution_before_the_sum_is_not(target):
    placement = placed(graph_of(Residual), "w8a8", target)
    points = activations_of(placement)
    assert ("Add", 0) in points["Relu_output"].consumers
    assert "conv1/Conv_output" not in points
    assert ("Add", 1) not in edges_of(placement)


@pytest.mark.parametrize("target", ["trt", "rtx"])
@pytest.mark.parametrize(
    ("projection_first", "skip", "fused"),
    [(1, "down/Conv_output", "conv2/Conv_output"), (0, "conv2/Conv_output", "down/Conv_output")],
    ids=["projection computed first", "main branch computed first"],
)
def test_of_two_convolutions_before_a_sum_the_later_one_stays_fused(
    projection_first, skip, fused, target
):
    points = activations_of(placed(graph_of(Residual, projection_first), "w8a8", target))
    assert points[skip].row == "residual-skip"
    assert [node for node, _ in points[skip].consumers] == ["Add_1"]
    assert fused not in points


def test_depthwise_stays_float_on_rtx_with_its_reason_and_is_quantized_on_trt():
    on_rtx, on_trt = (placed(graph_of(Depthwise), "w8a8", target) for target in ("rtx", "trt"))
    assert on_rtx.left_float == (("depthwise/Conv", TABLE["depthwise-float"].reason),)
    assert "depthwise.weight" not in weights_of(on_rtx)
    assert on_trt.left_float == ()
    assert weights_of(on_trt)["depthwise.weight"].depthwise
    assert ("depthwise/Conv", 0) in edges_of(on_trt)


def test_two_channels_per_group_stay_float_on_rtx_and_four_do_not():
    assert placed(graph_of(Transposed), "w8a8", "rtx").left_float == ()
    thin = conv_model(channels=8, groups=4)
    placement = place_plain(thin, "rtx")
    assert [node for node, _ in placement.left_float] == ["conv"]


def test_outputs_of_convolutions_are_quantized_for_onnx_runtime_alone():
    graph = graph_of(Depthwise)
    rows = {
        target: {
            p.tensor
            for p in placed(graph, "w8a8", target).activations
            if p.row == "weighted-output"
        }
        for target in TARGETS
    }
    assert rows["trt"] == rows["rtx"] == set()
    assert "project/Conv_output" in rows["ort-cpu"]
    everything = activations_of(placed(graph, "w8a8", "ort-cpu"))
    assert "logits" not in everything
    assert "expand/Conv_output" not in everything, "the pair goes behind the activation"


@pytest.mark.parametrize("target", TARGETS)
def test_first_and_last_layer_keep_eight_bits_unless_asked(target):
    placement = placed(graph_of(Residual), "w4a4", target)
    weights = {name: point.num_bits for name, point in weights_of(placement).items()}
    assert weights == {
        "stem.weight": 8,
        "conv1.weight": 4,
        "conv2.weight": 4,
        "down.weight": 4,
        "fc.weight": 8,
    }
    points = activations_of(placement)
    last = next(t for t, p in points.items() if ("fc/Gemm", 0) in p.consumers)
    narrow_skips = target == "ort-cpu"
    eight = {t for t, p in points.items() if p.num_bits == 8}
    assert {t for t in eight if points[t].row != "wide-skip"} == {"input", last}
    assert eight == {"input", last} or not narrow_skips
    narrow = placed(graph_of(Residual), "w4a4", target, first_last_bits=3)
    assert {point.num_bits for point in narrow.weights} == {4}
    wide = {point.row for point in narrow.activations if point.num_bits != 4}
    assert wide == (set() if narrow_skips else {"wide-skip"})


@pytest.mark.parametrize("target", ["trt", "rtx"])
def test_a_skip_keeps_eight_bits_of_its_own_beside_a_narrow_convolution(target):
    points = placed(graph_of(Residual), "w4a4", target).activations
    (own, skip) = [point for point in points if point.tensor == "Relu_output"]
    assert (own.name, own.num_bits, own.consumers) == ("Relu_output", 4, (("conv1/Conv", 0),))
    assert (skip.name, skip.num_bits, skip.consumers) == ("Relu_output/skip", 8, (("Add", 0),))


def test_a_skip_that_nothing_else_reads_has_the_tensors_name():
    points = placed(graph_of(Residual), "w4a4", "trt").activations
    alone = [p for p in points if p.row == "wide-skip" and p.tensor.endswith("Conv_output")]
    assert [(point.part, point.num_bits) for point in alone] == [("", 8)]


def test_one_pair_does_for_both_where_the_convolution_has_eight_bits():
    points = placed(graph_of(Residual), "w4a8", "trt").activations
    assert {point.part for point in points} == {""}


def test_first_and_last_bits_never_narrow_a_wide_scheme():
    placement = placed(graph_of(Residual), "w8a8", "trt", first_last_bits=4)
    assert {point.num_bits for point in (*placement.weights, *placement.activations)} == {8}


def test_published_protocol_quantizes_behind_activations_alone():
    """--recipe fdda-paper: no network input, no skips, not the last layer's input."""
    graph = graph_of(Residual)
    placement = placed(graph, "w4a4", "trt", everything=False)
    assert {p.tensor for p in placement.activations} == {"Relu_output", "Relu_1_output"}
    assert edges_of(placement) == {("conv1/Conv", 0), ("conv2/Conv", 0), ("down/Conv", 0)}
    assert placement.weights == placed(graph, "w4a4", "trt").weights


def test_published_protocol_has_no_point_that_nobody_reads():
    placement = placed(graph_of(DepthwiseFirst), "w4a4", "rtx", everything=False)
    assert all(point.consumers for point in placement.activations)
    assert "Relu_output" not in activations_of(placement), (
        "only the skip and a float filter read it"
    )


def test_weights_computed_in_the_graph_stay_float_with_the_reason():
    placement = placed(graph_of(ComputedWeights), "w8a8", "trt")
    assert list(weights_of(placement)) == ["head.weight"]
    assert {reason for _, reason in placement.left_float} == {
        "its weight is computed inside the graph"
    }
    assert len(placement.left_float) == 3


def test_weight_that_something_else_reads_stays_float():
    model = gemm_model(16)
    model.graph.node.append(helper.make_node("ReduceSum", ["w"], ["sum"], name="norm"))
    placement = place_plain(model, "trt")
    assert placement.left_float == (("fc", "norm reads its weight in float too"),)
    assert placement.weights == ()
    assert placement.activations == ()


def test_weight_read_along_two_axes_stays_float():
    model = gemm_model(16, out=16)
    model.graph.node.append(helper.make_node("MatMul", ["logits", "w"], ["again"], name="back"))
    placement = place_plain(model, "trt")
    assert {reason for _, reason in placement.left_float} == {
        "its weight is read along two different output axes"
    }


def test_layer_whose_input_has_no_torch_twin_stays_float():
    placement = place_plain(gemm_model(16), "trt", torch_tensors=())
    assert placement.left_float == (("fc", "its input has no torch tensor to calibrate on"),)


@pytest.mark.parametrize(
    "kind", [PadSliceConcat, PreActivation, SaidTwice], ids=lambda k: k.__name__
)
def test_points_come_in_graph_order(kind):
    graph = graph_of(kind)
    order = ["input", *(t for node in graph.proto.graph.node for t in node.output)]
    tensors = [point.tensor for point in placed(graph, "w8a8", "ort-cpu").activations]
    assert tensors == sorted(tensors, key=order.index)


def test_unknown_target_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"--target cuda: want one of trt, rtx, ort-cpu"):
        placed(graph_of(Residual), "w8a8", "cuda")


class _NoWeights(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def test_network_without_a_product_is_refused():
    with pytest.raises(ExportError, match="no convolution or linear layer: nothing to quantize"):
        placed(exported(_NoWeights()), "w8a8", "trt")


def test_every_row_says_why_and_is_used():
    for row in TABLE.values():
        assert row.reason.endswith(".")
        assert row.targets <= set(TARGETS)
