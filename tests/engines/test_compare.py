"""Comparisons: zero for equals, exact for known differences, an error where none makes sense."""

from __future__ import annotations

import numpy as np
import pytest
from engine_graphs import images, residual_float, residual_w8a8
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fdda_deploy.engines.compare import compare, compare_arrays
from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.errors import EngineError

logits = hnp.arrays(np.float32, (4, 3), elements=st.floats(-1e3, 1e3, width=32))


@given(a=logits)
def test_array_equals_itself(a: np.ndarray) -> None:
    found = compare_arrays("y", a, a)
    assert (found.max_abs_error, found.relative_l2, found.top1_agreement) == (0, 0, 1)
    assert found.cosine == pytest.approx(1)


@given(a=logits, b=logits)
def test_measures_stay_in_their_ranges(a: np.ndarray, b: np.ndarray) -> None:
    found, back = compare_arrays("y", a, b), compare_arrays("y", b, a)
    assert -1 <= found.cosine <= 1
    assert found.top1_agreement in (0, 0.25, 0.5, 0.75, 1)
    assert found.max_abs_error == back.max_abs_error
    assert found.cosine == pytest.approx(back.cosine)


def test_known_difference_gives_known_numbers() -> None:
    a, b = np.float32([[3, 4], [0, 0]]), np.float32([[4, 3], [0, 0]])
    found = compare_arrays("y", a, b)
    assert found.max_abs_error == 1
    assert found.relative_l2 == pytest.approx(2**0.5 / 5)
    assert found.cosine == pytest.approx(24 / 25)
    assert found.top1_agreement == 0.5


def test_zero_reference_is_infinitely_far_from_anything_else() -> None:
    zero, one = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    assert compare_arrays("y", zero, one).relative_l2 == float("inf")
    assert compare_arrays("y", zero, one).cosine == 0
    assert compare_arrays("y", zero, zero).relative_l2 == 0
    assert compare_arrays("y", zero, zero).cosine == 1


def test_output_that_holds_no_classes_has_no_top1() -> None:
    maps = np.ones((1, 2, 3, 3), np.float32)
    assert compare_arrays("maps", maps, maps).top1_agreement is None


def test_other_shapes_cannot_be_compared() -> None:
    with pytest.raises(EngineError, match=r"output y: shapes \(1, 2\) and \(1, 3\)"):
        compare_arrays("y", np.ones((1, 2)), np.ones((1, 3)))


def test_two_sessions_of_one_graph_agree() -> None:
    model = residual_w8a8().SerializeToString()
    with OrtRunner(model) as a, OrtRunner(model, optimizations="basic") as b:
        found = compare(a, b, {"input": images(6)})
    assert set(found) == {"logits"}
    assert found["logits"].relative_l2 < 1e-3


def test_graphs_with_other_outputs_are_refused() -> None:
    renamed = residual_float()
    renamed.graph.node[-1].output[0] = renamed.graph.output[0].name = "scores"
    with (
        OrtRunner(residual_float().SerializeToString()) as a,
        OrtRunner(renamed.SerializeToString()) as b,
        pytest.raises(EngineError, match=r"outputs differ: logits of ONNX Runtime .* scores of"),
    ):
        compare(a, b, {"input": images(1)})


def test_output_with_nan_is_refused_by_name() -> None:
    broken = images(2)
    broken[1] = np.nan
    model = residual_float().SerializeToString()
    with (
        OrtRunner(model) as a,
        OrtRunner(model) as b,
        pytest.raises(EngineError, match=r"output logits .*: 10 of 20 values are not finite"),
    ):
        compare(a, b, {"input": broken})
