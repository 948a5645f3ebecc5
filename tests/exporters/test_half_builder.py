"""The real TensorRT-RTX parser and builder take FP16 graphs, islands and all."""

from __future__ import annotations

import numpy as np
import pytest
from export_grids import grids_of, placed
from export_networks import Depthwise, Residual, SharedModule, WideHead, graph_of
from half_graphs import graph

from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_build import BuildOptions, build_plan
from fdda_deploy.exporters.half import to_half
from fdda_deploy.exporters.qdq import insert_qdq

pytest.importorskip("tensorrt_rtx_libs", reason="the TensorRT-RTX wheels are not installed")


def builds(model) -> bool:
    built = build_plan(model.SerializeToString(), BuildOptions(), load_api("tensorrt_rtx"))
    return len(built.plan) > 0


@pytest.mark.parametrize("kind", [Residual, Depthwise, SharedModule, WideHead])
@pytest.mark.parametrize("scheme", ["fp16", "w8a8", "w4a8", "w4a16", "w4a4"])
def test_networks_of_every_scheme(kind, scheme):
    exported = graph_of(kind)
    placement = placed(exported, scheme, "rtx")
    quantized = insert_qdq(exported.proto, placement, grids_of(exported, placement), {})
    assert builds(to_half(quantized).proto)


def test_attention_with_its_islands():
    text = """g (float[N,16,32] x) => (float[N,16,32] y) {
        a = LayerNormalization<axis = -1>(x, g)
        k = MatMul(a, wk)
        t = Transpose<perm = [0, 2, 1]>(k)
        s = MatMul(a, t)
        c = Mul(s, small)
        p = Softmax<axis = -1>(c)
        v = MatMul(p, a)
        e = Erf(v)
        y = Add(e, x)
    }"""
    random = np.random.default_rng(0)
    model = graph(
        text,
        g=np.ones(32, np.float32),
        wk=random.standard_normal((32, 32)).astype(np.float32),
        small=np.float32(1e-6),
    )
    half = to_half(model)
    assert [name for name, _ in half.islands] == ["n0", "n4", "n5"]
    assert builds(half.proto)


def test_a_layer_whose_scale_keeps_it_in_fp32():
    text = """g (float[N,32] x) => (float[N,32] y) {
        a = Relu(x)
        q = QuantizeLinear(a, s, z)
        d = DequantizeLinear(q, s, z)
        w = DequantizeLinear<axis = 1>(wq, ws, wz)
        m = MatMul(d, w)
        b = Sigmoid(m)
        y = Add(b, d)
    }"""
    random = np.random.default_rng(0)
    model = graph(
        text,
        s=np.float32(2.0**-16),
        z=np.int8(0),
        wq=random.integers(-128, 128, (32, 32), dtype=np.int8),
        ws=np.full(32, 0.01, np.float32),
        wz=np.zeros(32, np.int8),
    )
    assert builds(to_half(model).proto)
