"""FP16 inside, FP32 outside: what the cast does to whole networks."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from export_grids import grids_of, placed, run_onnx
from export_networks import (
    Depthwise,
    PadSliceConcat,
    Residual,
    SharedModule,
    WideHead,
    graph_of,
    images,
)
from half_graphs import types_of
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from fdda_deploy.exporters.half import to_half
from fdda_deploy.exporters.qdq import insert_qdq
from fdda_deploy.exporters.trt_rules import check

MAX_FLOAT = 2e-3
"""Relative L2 of the FP16 logits of a float graph; FP16 rounds each tensor to 2^-11."""
NETWORKS = (Residual, Depthwise, SharedModule, PadSliceConcat, WideHead)
each_network = pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)


def quantized(kind, scheme):
    graph = graph_of(kind)
    placement = placed(graph, scheme, "rtx")
    return insert_qdq(graph.proto, placement, grids_of(graph, placement), {})


@each_network
def test_logits_stay_near_the_float_ones(kind):
    model, x = graph_of(kind).proto, images()
    wanted, got = run_onnx(model, x), run_onnx(to_half(model).proto, x)
    assert got.dtype == np.float32
    assert np.linalg.norm(got - wanted) <= MAX_FLOAT * np.linalg.norm(wanted)


@each_network
def test_logits_stay_near_the_float_ones_when_every_tensor_is_rounded(kind):
    """ONNX Runtime keeps FP32 between FP16 nodes on a CPU; ONNX's own evaluator does not."""
    model, x = graph_of(kind).proto, images()
    wanted = run_onnx(model, x)
    (got,) = ReferenceEvaluator(to_half(model).proto).run(None, {"input": x.numpy()})
    assert np.linalg.norm(got - wanted) <= MAX_FLOAT * np.linalg.norm(wanted)


@each_network
@pytest.mark.parametrize("scheme", ["w8a8", "w4a16"])
def test_no_node_mixes_float_types_and_no_rule_is_broken(kind, scheme):
    model = to_half(quantized(kind, scheme)).proto
    errors = [f.message for f in check(model, target="rtx") if f.severity == "error"]
    assert errors == []
    assert types_of(model)["input"] == types_of(model)["logits"] == TensorProto.FLOAT


@each_network
def test_weight_only_layers_compute_in_half(kind):
    model = to_half(quantized(kind, "w8a16")).proto
    types = types_of(model)
    weighted = [n for n in model.graph.node if n.op_type in {"Conv", "Gemm", "MatMul"}]
    assert weighted
    for node in weighted:
        floats = {types[tensor] for tensor in node.input}
        assert floats == {TensorProto.FLOAT16}, node.name


@each_network
def test_the_graph_that_was_given_stays_as_it_is(kind):
    model = quantized(kind, "w8a8")
    before = model.SerializeToString()
    to_half(model)
    assert model.SerializeToString() == before


@each_network
def test_one_typed_constants_keep_their_names_and_halve_their_bytes(kind):
    model = graph_of(kind).proto
    half = to_half(model).proto
    before = {t.name: t for t in model.graph.initializer}
    for tensor in half.graph.initializer:
        old = before[tensor.name.removesuffix("_fp16")]
        assert list(tensor.dims) == list(old.dims)
        if old.data_type == TensorProto.FLOAT and tensor.data_type == TensorProto.FLOAT16:
            assert tensor.name in {old.name, f"{old.name}_fp16"}
    weights = {n.input[1] for n in half.graph.node if n.op_type in {"Conv", "Gemm"}}
    assert weights <= set(before)


def test_it_is_made_the_same_every_time():
    model = quantized(NETWORKS[0], "w4a8")
    assert to_half(model).proto.SerializeToString() == to_half(model).proto.SerializeToString()


def test_integers_are_the_same_where_scales_are_normal():
    model = quantized(NETWORKS[0], "w8a8")
    half = to_half(model)
    assert half.scales_raised == 0
    before = {
        t.name: t.raw_data for t in model.graph.initializer if t.data_type == TensorProto.INT8
    }
    after = {
        t.name: t.raw_data for t in half.proto.graph.initializer if t.data_type == TensorProto.INT8
    }
    assert before == after
    onnx.checker.check_model(half.proto, full_check=True)
