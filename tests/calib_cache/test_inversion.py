"""Inverted tables are told by what no network can do, and sound ones are never called inverted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.calib_cache.inversion import (
    DECISIVE_BOUND,
    activation_scales,
    evidence,
    reciprocal,
    refuse_inverted,
)
from fdda_deploy.calib_cache.ort_table import record_from_amax
from fdda_deploy.calib_cache.record import CalibrationRecord, TensorCalibration
from fdda_deploy.errors import CalibrationError
from fdda_deploy.quant.qparams import QParams

SMALL_RANGES = {"input": 2.64, "conv1": 6.1, "conv2": 3.3, "logits": 21.0}
VGG = {"data": 151.0, "conv1_1": 803.0, "conv3_1": 12750.0, "conv4_3": 6810.0, "fc6": 102.0}
"""Ranges of a network that takes raw pixels: thousands, and sound."""
NAMES = st.sampled_from([f"layer{index}/Relu_output_0" for index in range(40)])


def sound(amax: dict[str, float]) -> dict[str, float]:
    return {name: value / 127 for name, value in amax.items()}


def inverted(amax: dict[str, float]) -> dict[str, float]:
    return {name: 127 / value for name, value in amax.items()}


@given(st.floats(0.1, 255), st.dictionaries(NAMES, st.floats(1e-4, 1e5), max_size=12))
def test_a_sound_table_of_a_network_for_images_is_never_called_inverted(
    pixels: float, others: dict[str, float]
) -> None:
    assert evidence(sound({"input": pixels, **others})) is None


@given(st.dictionaries(NAMES, st.floats(1e-3, 15.8), min_size=1, max_size=12))
def test_the_inverse_of_ranges_below_16_is_always_found(amax: dict[str, float]) -> None:
    reason = evidence(inverted(amax))
    assert reason is not None
    assert "the smallest of all" in reason


@given(
    st.dictionaries(NAMES, st.floats(1e-3, 15.8), min_size=3, max_size=8),
    st.dictionaries(st.sampled_from(["wide1", "wide2"]), st.floats(16, 63), max_size=2),
)
def test_a_few_ranges_up_to_63_do_not_hide_an_inverse(
    amax: dict[str, float], wide: dict[str, float]
) -> None:
    assert evidence(inverted(amax | wide)) is not None


def test_raw_pixels_and_ranges_of_thousands_are_sound() -> None:
    assert evidence(sound(VGG)) is None
    assert evidence({"dead": 0.0}) is None
    assert evidence({}) is None


@pytest.mark.parametrize(
    "name",
    ["gpu_0/softmax_1", "/head/Softmax_output_0", "Sigmoid", "model/HardSigmoid"],
)
def test_a_softmax_that_reaches_thousands_gives_the_table_away(name: str) -> None:
    amax = {"data": 151.0, "conv": 12750.0, name: 0.98}
    assert evidence(sound(amax)) is None
    assert "its name says" in str(evidence(inverted(amax)))


@pytest.mark.parametrize("name", ["LogSoftmax", "log_softmax", "softmax_input", "presoftmax"])
def test_names_that_promise_no_bound_are_no_evidence(name: str) -> None:
    assert evidence({"data": 1.2, name: 40.0}) is None


BOUNDS = st.dictionaries(NAMES, st.floats(0.5, DECISIVE_BOUND * 0.99), min_size=1, max_size=8)


@given(BOUNDS, st.data())
def test_ranges_within_the_bounds_of_the_graph_are_sound(
    bounds: dict[str, float], data: st.DataObject
) -> None:
    filled = {name: bound * data.draw(st.floats(1e-3, 2.0)) for name, bound in bounds.items()}
    assert evidence(sound(VGG | filled), bounds) is None


@given(BOUNDS, st.data())
def test_the_inverse_of_ranges_within_bounds_is_always_found(
    bounds: dict[str, float], data: st.DataObject
) -> None:
    filled = {name: bound * data.draw(st.floats(1e-3, 1.0)) for name, bound in bounds.items()}
    with pytest.raises(CalibrationError, match="where the graph allows"):
        refuse_inverted(inverted(VGG | filled), bounds)


@pytest.mark.parametrize("grid", [(0, 15, 0), (-128, 127, -128), (-2, 1, 0)])
def test_a_grid_of_another_width_counts_by_its_range(grid: tuple[int, int, int]) -> None:
    qmin, qmax, zero_point = grid
    scale = 6 / (qmax - zero_point)
    qparams = QParams(np.float32(scale), qmin, qmax, zero_point=zero_point)
    tensors = {"clip": TensorCalibration(qparams, 6.0, "mse", "activation")}
    record = CalibrationRecord(tensors, "m", "d", "w4a4", "trt", "mse", "0.1.0")
    assert evidence(activation_scales(record), {"clip": 6.0}) is None


def test_a_bound_that_an_inverse_may_keep_decides_nothing() -> None:
    assert evidence({"clip": 127 / 100.0}, {"clip": 100.0}) is None


def test_the_refusal_names_the_tensor_and_the_repair() -> None:
    with pytest.raises(CalibrationError, match=r"127/amax where TensorRT wants amax/127") as caught:
        refuse_inverted(inverted(SMALL_RANGES))
    message = str(caught.value)
    assert "logits has scale 6.04762, a range of +-768.048" in message
    assert "--inverted" in message
    assert "write it again with the reciprocals" in message
    assert "\n" not in message


def test_ranges_that_fit_neither_way_round_are_another_networks() -> None:
    with pytest.raises(CalibrationError, match="the table of another network"):
        refuse_inverted({"sigmoid": 0.5}, {"sigmoid": 0.001})


@given(st.dictionaries(NAMES, st.floats(1e-3, 15.8), min_size=1, max_size=8))
def test_reciprocals_repair_an_inverted_table_to_the_last_bit_but_one(
    amax: dict[str, float],
) -> None:
    wrong = record_from_amax({name: 127 * 127 / value for name, value in amax.items()}, "test")
    repaired = activation_scales(reciprocal(wrong))
    for name, value in amax.items():
        assert repaired[name] == pytest.approx(value / 127, rel=2.0**-22)


def test_inverting_a_sound_table_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"with --inverted, .* Leave out --inverted"):
        reciprocal(record_from_amax(SMALL_RANGES, "test"))


def test_a_scale_without_a_reciprocal_is_named() -> None:
    huge = record_from_amax({"t": 3e38 * 127}, "test")
    with pytest.raises(CalibrationError, match=r"t: scale 3e\+38 has no reciprocal"):
        reciprocal(huge)
