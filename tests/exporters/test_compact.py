"""Compact placement: a layer is INT8 where that saves more bytes than its kernels take."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from export_grids import grids_of
from export_networks import Depthwise, Residual, graph_of
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters import compact
from fdda_deploy.exporters.compact import DOES_NOT_PAY, KERNEL_BYTES, is_compact, place_compact
from fdda_deploy.exporters.placement import TABLE
from fdda_deploy.exporters.qdq import Grids, insert_qdq
from fdda_deploy.exporters.trt_rules import check
from fdda_deploy.quant.points import Placement
from fdda_deploy.quant.qparams import QParams
from fdda_deploy.quant.scheme import Scheme, scheme_from_name

W8A8 = scheme_from_name("w8a8")
BREAK_EVEN = KERNEL_BYTES // 3
"""Weights whose saving is as large as a kernel."""
CHANNELS = 128
"""128 x 128 weights save a third of a kernel; 128 x 512 save more than one."""


def chain(*widths: int, sizes: tuple[int, ...] = ()) -> onnx.ModelProto:
    """Returns pointwise convolutions 3 -> widths[0] -> widths[1] ..., a ReLU behind each."""
    nodes, held, tensor, channels = [], [], "input", 3
    strides = sizes or (1,) * len(widths)
    for index, width in enumerate(widths):
        weight = np.ones((width, channels, 1, 1), np.float32)
        held.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes += [
            helper.make_node(
                "Conv", [tensor, f"w{index}"], [f"c{index}"], f"conv{index}",
                strides=[strides[index]] * 2,
            ),
            helper.make_node("Relu", [f"c{index}"], [f"r{index}"], f"relu{index}"),
        ]  # fmt: skip
        tensor, channels = f"r{index}", width
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "chain",
        [value("input", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [value(tensor, TensorProto.FLOAT, ["n", channels, None, None])],
        held,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def placed(model: onnx.ModelProto, **changes: object) -> Placement:
    tensors = {"input", *(output for node in model.graph.node for output in node.output)}
    parameters = {tensor.name: (tensor.name, False) for tensor in model.graph.initializer}
    return place_compact(
        model,
        W8A8,
        torch_tensors=tensors,
        parameters=parameters,
        **changes,  # type: ignore[arg-type]
    )


def placed_graph(kind: type) -> Placement:
    graph = graph_of(kind)
    return place_compact(
        graph.proto,
        W8A8,
        torch_tensors=graph.fx_from_tensor,
        parameters=graph.parameter_from_initializer,
    )


def quantized(placement: Placement) -> set[str]:
    return {name for point in placement.weights for name in point.consumers}


@pytest.mark.parametrize(
    ("scheme", "target", "fits"),
    [
        (W8A8, "rtx", True),
        (W8A8, "trt", False),
        (W8A8, "ort-cpu", False),
        (scheme_from_name("w4a8"), "rtx", False),
        (scheme_from_name("w8a16"), "rtx", False),
        (scheme_from_name("fp8"), "rtx", False),
        (Scheme(8, 8, 4), "rtx", False),
    ],
    ids=["w8a8 rtx", "trt", "cpu", "4-bit weights", "weight-only", "fp8", "4-bit ends"],
)
def test_it_is_for_eight_bits_on_rtx_alone(scheme, target, fits):
    assert is_compact(scheme, target) is fits


def test_a_layer_that_saves_less_than_its_kernel_stays_float_and_says_why():
    placement = placed(chain(CHANNELS, CHANNELS, 512, 512, sizes=(1, 2, 1, 1)))
    assert CHANNELS * CHANNELS < BREAK_EVEN < CHANNELS * 512
    assert quantized(placement) == {"conv0", "conv2", "conv3"}
    assert placement.left_float == (("conv1", DOES_NOT_PAY),)


def test_layers_of_one_input_shape_pay_for_one_kernel_together():
    alone = placed(chain(CHANNELS, CHANNELS, 512, 512, sizes=(1, 2, 1, 1)))
    together = placed(chain(*[CHANNELS] * 4, 512, 512))
    assert "conv1" not in quantized(alone)
    assert {"conv1", "conv2", "conv3"} <= quantized(together)


def test_the_network_s_own_input_is_not_counted():
    placement = placed(chain(512, 512))
    assert BREAK_EVEN > 3 * 512
    assert "conv0" in quantized(placement)


def test_a_network_of_which_nothing_pays_is_quantized_whole():
    placement = placed(chain(8, 8, 8))
    assert quantized(placement) == {"conv0", "conv1", "conv2"}
    assert placement.left_float == ()
    assert all(point.one_scale for point in placement.weights)


def test_widths_that_are_asked_for_are_kept():
    model = chain(CHANNELS, CHANNELS, 512, 512, sizes=(1, 2, 1, 1))
    asked = placed(model, widths={"conv1": 8, "conv3": None})
    assert quantized(asked) == {"conv0", "conv1", "conv2"}
    assert dict(asked.left_float)["conv3"] != DOES_NOT_PAY
    with pytest.raises(ExportError, match="no layer with weights has this name"):
        placed(model, widths={"conv9": None})


def test_tensors_of_one_shape_share_and_the_others_do_not():
    placement = placed(chain(512, 512, 512, 256, 64, sizes=(1, 1, 1, 1, 1)))
    shares = {point.tensor: point.shares for point in placement.activations}
    assert shares["r0"] == shares["r1"] == shares["r2"] == "512x8x8"
    assert shares["input"] == ""


def test_where_shapes_are_unknown_every_layer_is_quantized_and_nothing_shared(monkeypatch):
    monkeypatch.setattr(compact, "tensor_types", lambda _: ({}, {}, "no inference"))
    placement = placed(chain(8, 8, 512))
    assert quantized(placement) == {"conv0", "conv1", "conv2"}
    assert not any(point.shares for point in placement.activations)


def test_skips_stay_float_and_so_do_depthwise_layers():
    placement = placed_graph(Residual)
    additions = [n.name for n in graph_of(Residual).proto.graph.node if n.op_type == "Add"]
    edges = {node for point in placement.activations for node, _ in point.consumers}
    assert additions
    assert not edges & set(additions)
    assert ("depthwise/Conv", TABLE["depthwise-float"].reason) in placed_graph(Depthwise).left_float


def test_who_reads_a_skip_in_float_sees_no_zero_point():
    graph = graph_of(Residual)
    skips = {t for n in graph.proto.graph.node if n.op_type == "Add" for t in n.input}
    points = [p for p in placed_graph(Residual).activations if p.tensor in skips]
    assert points
    assert not any(point.shifted for point in points)


def test_a_weight_with_one_scale_is_written_with_a_scalar_and_obeys_the_rules():
    graph, placement = graph_of(Residual), placed_graph(Residual)
    grids = grids_of(graph, placement)
    weights = {}
    for name, (x_int, grid) in grids.weights.items():
        weights[name] = x_int, QParams(grid.scale.max(), grid.qmin, grid.qmax)
    model = insert_qdq(graph.proto, placement, dataclasses.replace(grids, weights=weights), {})
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    made = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in held]
    assert len(made) == len(placement.weights)
    for node in made:
        assert not held[node.input[1]].dims
        assert not held[node.input[2]].dims
        assert not node.attribute
    assert isinstance(grids, Grids)
    assert not [f for f in check(model, target="rtx", profiles_given=True) if f.severity == "error"]
