"""One chain: NumPy, torch, ONNX Runtime and TensorRT mean the same by the same integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx import numpy_helper
from parity_layers import float_differences, integer_differences, relative_l2, run_onnx
from parity_networks import NETWORKS, SCHEMES, chain, images

from fdda_deploy.engines.trt_api import TrtApi, load_api
from fdda_deploy.engines.trt_build import BuildOptions, build_plan
from fdda_deploy.exporters.placement_table import TARGETS
from fdda_deploy.exporters.trt_rules import check
from fdda_deploy.pipeline.quantization.fake_quant import (
    ActivationQuantizer,
    WeightQuantizer,
    quantize,
)
from fdda_deploy.quant import affine
from fdda_deploy.quant.qparams import QParams

NUM_IMAGES = 256
MAX_FLIPS = 1e-4
"""Share of the integers of one network that may differ between torch and ONNX Runtime."""
MIN_AGREEMENT = 0.995
MAX_LOGITS = 1e-2

each_network = pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
each_scheme = pytest.mark.parametrize("scheme", SCHEMES)
each_target = pytest.mark.parametrize("target", TARGETS)
each_trt_target = pytest.mark.parametrize("target", ["trt", "rtx"])


@st.composite
def grids(draw: st.DrawFn) -> QParams:
    steps = 2 ** draw(st.integers(2, 8)) - 1
    qmin = draw(st.integers(max(-128, -steps), min(0, 127 - steps)))
    scale = draw(st.floats(float(np.float32(1e-20)), float(np.float32(1e20)), width=32))
    return QParams(np.float32(scale), qmin, qmin + steps)


@given(
    grids(),
    npst.arrays(np.float32, 16, elements=st.floats(-300, 300, width=32)),
    npst.arrays(np.int16, 16, elements=st.integers(-140, 140)),
)
def test_numpy_and_torch_find_the_same_integers_ties_included(grid, steps, halves):
    ties = (halves.astype(np.float32) + np.float32(0.5)) * grid.scale
    x = np.concatenate([steps * grid.scale, ties, np.nextafter(ties, np.float32(0))])
    want = affine.quantize(x, grid)
    x_torch, scale = torch.from_numpy(x), torch.from_numpy(np.array(grid.scale))
    found = quantize(x_torch, scale, grid.qmin, grid.qmax)
    np.testing.assert_array_equal(found.numpy(), want)
    quantizer = ActivationQuantizer()
    quantizer.set_qparams(grid)
    np.testing.assert_array_equal(quantizer(x_torch).numpy(), affine.dequantize(want, grid))


@given(st.integers(2, 8), st.integers(0, 3), st.integers(0, 2**31))
def test_numpy_and_torch_quantize_weights_alike_along_any_axis(num_bits, axis, seed):
    random = np.random.default_rng(seed)
    weight = random.standard_normal((4, 3, 2, 5)).astype(np.float32)
    amax = random.uniform(0.1, 3, weight.shape[axis]).astype(np.float32)
    grid = affine.qparams_from_amax(amax, num_bits, axis)
    quantizer = WeightQuantizer()
    quantizer.set_qparams(grid, weight.shape)
    found = quantizer(torch.from_numpy(weight)).numpy()
    np.testing.assert_array_equal(found, affine.fake_quant(weight, grid))


@each_network
@each_scheme
@each_target
def test_weights_in_the_file_are_the_weights_that_torch_computes_with(kind, scheme, target):
    made = chain(kind, scheme, target)
    held = {t.name: numpy_helper.to_array(t) for t in made.model.graph.initializer}
    for point in made.network.placement.weights:
        stored = held[f"{point.initializer}_quantized"].astype(np.int8)
        quantizer = made.network.weight_quantizers[point.initializer]
        _, transposed = made.network.names.parameter_from_initializer[point.initializer]
        x_q = quantizer(made.network.weight(point)).detach().numpy()
        x_deq = affine.dequantize(stored, made.grids.weights[point.initializer][1])
        np.testing.assert_array_equal(x_q.T if transposed else x_q, x_deq)
        assert stored.min() >= -(2 ** (point.num_bits - 1))
        assert stored.max() <= 2 ** (point.num_bits - 1) - 1


@each_network
@each_target
@pytest.mark.parametrize("scheme", [s for s in SCHEMES if not s.endswith("a16")])
def test_each_layer_fed_the_same_finds_the_same_integers(kind, scheme, target):
    found = integer_differences(chain(kind, scheme, target), images(NUM_IMAGES, 5))
    assert max(entry.steps for entry in found) <= 1
    flips, count = (sum(getattr(entry, key) for entry in found) for key in ("flips", "count"))
    assert flips <= MAX_FLIPS * count, [entry for entry in found if entry.flips]


@each_network
@each_target
@pytest.mark.parametrize("scheme", ["w4a16", "w8a16"])
def test_each_weight_only_layer_fed_the_same_computes_the_same(kind, scheme, target):
    found = dict(float_differences(chain(kind, scheme, target), images(NUM_IMAGES, 5)))
    assert len(found) > 8
    # Both sum in float32, each in its own order; a layer whose sum cancels shows ten roundings.
    assert max(found.values()) < 4e-6


@each_network
@each_scheme
@each_target
def test_whole_network_agrees_in_class_and_logits(kind, scheme, target):
    made = chain(kind, scheme, target)
    x = images(NUM_IMAGES, 6)
    with torch.no_grad():
        ours = made.network(x).numpy()
        in_float = made.graph.module(x).numpy()
    theirs = run_onnx(made.model, x)["logits"]
    assert np.mean(ours.argmax(1) == theirs.argmax(1)) >= MIN_AGREEMENT
    assert relative_l2(ours, theirs) <= MAX_LOGITS
    # Both would agree if neither quantized anything, or if both lost the network.
    assert relative_l2(theirs, in_float) > 1e-4
    assert np.mean(theirs.argmax(1) == in_float.argmax(1)) > 0.3
    assert len(np.unique(theirs.argmax(1))) > 3


@each_network
@each_scheme
@each_trt_target
def test_no_rule_of_tensorrt_is_broken(kind, scheme, target):
    findings = check(
        chain(kind, scheme, target).model,
        target=target,
        compute_capabilities=(86, 89),
        profiles_given=True,
    )
    assert [finding.message for finding in findings if finding.severity == "error"] == []


@pytest.fixture(scope="module")
def api() -> TrtApi:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux x86-64")
    return load_api("tensorrt_rtx")


@each_network
@each_scheme
@each_trt_target
def test_tensorrt_rtx_builds_a_plan_for_any_gpu_and_for_two_named_ones(api, kind, scheme, target):
    model = chain(kind, scheme, target).model.SerializeToString()
    for gpus in ((), (86, 89)):
        built = build_plan(model, BuildOptions(gpus), api)
        assert len(built.plan) > 10_000
        assert [line for line in built.log if line.startswith(("ERROR", "INTERNAL"))] == []
