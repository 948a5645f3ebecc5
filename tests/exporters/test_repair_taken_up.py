"""Biases take up an activation's zero-point where nobody sees it: INT8 keeps all 256 steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repair_graphs import (
    UINT8,
    constant,
    distance,
    left,
    operators,
    outputs,
    plan_of,
    quantizer_of,
    repaired,
    shaped,
)
from shiftable_graphs import Shiftable, chain, residual
from trt_rules_graphs import INT8

EXACT = 1e-5


def taken_up(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the repaired model; every change of an asymmetric grid was a zero-point taken up."""
    result, changes = repaired(model, "R12")
    mine = [change for change in changes if change.repair == "R12"]
    assert all("taken up by the biases of" in change.what for change in mine)
    assert left(result, "T003", "T004") == []
    return result


@pytest.mark.parametrize(
    ("zero", "dtype"),
    [(0, UINT8), (100, UINT8), (255, UINT8), (-128, INT8), (37, INT8)],
    ids=["ReLU", "skewed", "never positive", "ReLU in INT8", "skewed in INT8"],
)
def test_the_same_integers_come_out_on_the_same_scale(zero: int, dtype: int) -> None:
    model = chain(zero, dtype).model("end")
    result = taken_up(model)
    node = quantizer_of(result, "y")
    assert constant(result, node.input[1]) == np.float32(0.02)
    assert constant(result, node.input[2]).dtype == np.int8
    assert constant(result, node.input[2]) == 0
    assert "Relu" not in operators(result)  # INT8's lowest value is what cuts off
    assert distance(model, result) < EXACT


@pytest.mark.parametrize("between", ["Relu", "MaxPool"])
def test_a_relu_that_saturation_stands_for_goes(between: str) -> None:
    model = chain(between=between).model("end")
    result = taken_up(model)
    assert "Relu" not in operators(result)
    assert distance(model, result) < EXACT


def test_other_bounds_move_along() -> None:
    for g in (chain(between="Clip"), chain(60, between="Relu")):
        model = g.model("end")
        result = taken_up(model)
        assert operators(result).count("Clip") == 1
        assert distance(model, result) < EXACT


@pytest.mark.parametrize("grouped", [False, True], ids=["dense", "grouped"])
def test_additions_take_a_skips_zero_point_back_from_their_other_operand(grouped: bool) -> None:
    model = residual(grouped=grouped)
    result = taken_up(model)
    assert distance(model, result) < EXACT


def test_tensorrt_rtx_builds_what_biases_took_up() -> None:
    assert plan_of(taken_up(residual())) is not None


def test_before_opset_11_no_bound_is_moved() -> None:
    g = Shiftable()
    y = g.add("Conv", g.pair("x", 0.03, dtype=INT8), g.floats(16, 16, 3, 3), g.floats(16))
    end = g.add("Conv", g.pair(g.add("Relu", y), 0.02, 60), g.floats(8, 16, 1, 1), g.floats(8))
    model = g.model(end)
    model.opset_import[0].version = 10
    result, changes = repaired(model, "R12")
    assert not any("taken up" in change.what for change in changes)
    assert "Clip" not in operators(result)


@settings(max_examples=10, deadline=None)
@given(
    zeros=st.tuples(st.integers(0, 255), st.integers(0, 255)),
    scales=st.tuples(st.floats(0.005, 0.1), st.floats(0.005, 0.1)),
    transposed=st.booleans(),
)
def test_any_zero_points_in_a_row(
    zeros: tuple[int, int], scales: tuple[float, float], transposed: bool
) -> None:
    g = Shiftable()
    inner = g.layer(g.pair(g.start(), scales[0], zeros[0]), 16, 8)
    flat = g.pair(g.add("Flatten", inner), scales[1], zeros[1])
    wide = 8 * 6 * 6
    weight = g.weights(4, wide) if transposed else g.weights(wide, 4, axis=1)
    model = g.model(g.add("Gemm", flat, weight, g.floats(4), transB=int(transposed)))
    result, changes = repaired(shaped(model))
    taken = sum("taken up" in change.what for change in changes)
    assert taken == sum(zero != 128 for zero in zeros)
    # a sum on a tie may round the other way, and then counts for a step of one number
    assert np.abs(outputs(model) - outputs(result)).max() < 2 * max(scales)
    assert left(result, "T003", "T004") == []


def padded(g: Shiftable, y: str) -> str:
    return g.conv(y, g.weights(8, 16, 3, 3), g.floats(8))


def without_bias(g: Shiftable, y: str) -> str:
    return g.add("Conv", y, g.weights(8, 16, 1, 1))


def computed_weight(g: Shiftable, y: str) -> str:
    return g.add("Conv", y, g.add("Identity", g.add("Relu", g.floats(8, 16, 1, 1))), g.floats(8))


def another_pair(g: Shiftable, y: str) -> str:
    pooled = g.add("MaxPool", y, kernel_shape=[2, 2])
    return g.layer(g.pair(pooled, 0.02), 16, 8)


def activation(g: Shiftable, y: str) -> str:
    return g.layer(g.pair(g.add("Sigmoid", y), 1 / 255), 16, 8)


@pytest.mark.parametrize(
    "reader", [padded, without_bias, computed_weight, another_pair, activation]
)
def test_a_reader_that_would_see_the_shift_keeps_the_wider_steps(
    reader: Callable[[Shiftable, str], str],
) -> None:
    g = Shiftable()
    model = g.model(reader(g, g.pair(g.start(), 0.05, 100)))
    result, changes = repaired(model)
    assert not any("taken up" in change.what for change in changes)
    assert distance(model, result) < 0.1


def test_a_maker_whose_tensor_others_read_in_float_keeps_it() -> None:
    g = Shiftable()
    y = g.start()
    main = g.layer(g.pair(y, 0.02, 100), 16, 16)
    model = g.model(g.add("Add", g.add("Sigmoid", y), main))
    _, changes = repaired(model)
    assert not any("taken up" in change.what for change in changes)


@pytest.mark.parametrize("fault", ["maker without a bias", "bias of many readers", "the input"])
def test_a_maker_that_cannot_take_it_keeps_the_wider_steps(fault: str) -> None:
    g = Shiftable()
    x = g.pair("x", 0.03, dtype=INT8)
    shared = g.floats(16)
    if fault == "maker without a bias":
        y = g.add("Conv", x, g.weights(16, 16, 3, 3))
    elif fault == "the input":
        y = g.add("Relu", "x")
    else:
        twin = g.add("Conv", x, g.weights(16, 16, 3, 3), shared)
        y = g.add("Conv", g.pair(twin, dtype=INT8), g.weights(16, 16, 1, 1), shared)
    model = g.model(g.layer(g.pair(y, 0.02, 0), 16, 8))
    result, changes = repaired(model)
    assert not any("taken up" in change.what for change in changes)
    assert distance(model, result) < 0.1
