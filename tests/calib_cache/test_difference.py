"""Two calibrations are the same, or the tensors that differ are named, the farthest first."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.calib_cache.difference import compare
from fdda_deploy.calib_cache.ort_table import record_from_amax
from fdda_deploy.calib_cache.record import CalibrationRecord, TensorCalibration
from fdda_deploy.quant.qparams import QParams

NAMES = st.sampled_from("abcdefgh")
TABLES = st.dictionaries(NAMES, st.floats(0, 1e6), max_size=8).map(
    lambda amax: record_from_amax(amax, "test")
)


def record_of(**grids: QParams) -> CalibrationRecord:
    tensors = {n: TensorCalibration(g, 1.0, "mse", "activation") for n, g in grids.items()}
    return CalibrationRecord(tensors, "m", "d", "w8a8", "trt", "mse", "0.1.0")


@given(TABLES)
def test_a_calibration_is_the_same_as_itself(record: CalibrationRecord) -> None:
    assert compare(record, record).same


@given(TABLES, TABLES)
def test_swapping_the_two_swaps_the_answer(
    first: CalibrationRecord, second: CalibrationRecord
) -> None:
    there, back = compare(first, second), compare(second, first)
    assert (there.only_first, there.same) == (back.only_second, back.same)
    assert {entry.tensor for entry in there.changed} == {entry.tensor for entry in back.changed}
    ratios = {entry.tensor: entry.ratio for entry in back.changed}
    for entry in there.changed:
        other = ratios[entry.tensor]
        assert (entry.ratio is None) == (other is None)
        if entry.ratio is not None and other is not None:
            assert np.isclose(entry.ratio * other, 1)


def test_one_bit_of_one_scale_is_a_difference() -> None:
    one = np.float32(0.02)
    changed = compare(
        record_of(t=QParams(one, -128, 127)),
        record_of(t=QParams(np.nextafter(one, np.float32(1)), -128, 127)),
    ).changed
    assert [(entry.tensor, entry.reason) for entry in changed] == [("t", "scale")]


def test_the_farthest_ratio_comes_first_and_the_tolerance_counts_both_ways() -> None:
    first = record_from_amax({"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.0, "e": 1.0}, "test")
    second = record_from_amax({"a": 1.05, "b": 0.25, "c": 2.0, "d": 1.0, "f": 1.0}, "test")
    found = compare(first, second, tolerance=0.1)
    assert [entry.tensor for entry in found.changed] == ["d", "b", "c"]
    assert [entry.reason for entry in found.changed] == ["unexcited", "scale", "scale"]
    assert (found.only_first, found.only_second, found.common) == (("e",), ("f",), 4)
    assert not found.same


def test_another_integer_range_or_shape_is_a_difference() -> None:
    scale = np.float32([0.1, 0.2])
    first = record_of(t=QParams(np.float32(0.1), -128, 127), w=QParams(scale, -8, 7, axis=0))
    second = record_of(t=QParams(np.float32(0.1), 0, 15), w=QParams(np.float32(0.1), -8, 7))
    found = {entry.tensor: (entry.reason, entry.ratio) for entry in compare(first, second).changed}
    assert found == {"t": ("integer range", 1.0), "w": ("shape", None)}
