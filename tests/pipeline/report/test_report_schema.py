"""report.json has one shape, and whatever does not fit is named by its path."""

from __future__ import annotations

import json
import math
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_sample import bare_report, full_report

from fdda_deploy.pipeline.report.schema import REPORT_SCHEMA, Report, validate, without_nonfinite

REPORTS = pytest.mark.parametrize("build", [full_report, bare_report], ids=["full", "bare"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def changed(path: str, value: object) -> dict[str, Any]:
    """Returns the full report with one value replaced."""
    report: Any = full_report()
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    place = report
    for key in parents:
        place = place[key]
    place[last] = value
    return typing.cast("dict[str, Any]", report)


@REPORTS
def test_the_reports_a_build_writes_pass_and_survive_json(build: Any) -> None:
    report = build()
    validate(report)
    assert report["schema"] == REPORT_SCHEMA
    validate(json.loads(json.dumps(report, allow_nan=False)))


@pytest.mark.parametrize("key", sorted(typing.get_type_hints(Report)))
def test_a_missing_key_is_named(key: str) -> None:
    report = dict(full_report())
    del report[key]
    with pytest.raises(ValueError, match=rf"^report\.{key}: missing\.$"):
        validate(report)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 2, "report.schema: got 2, wanted 1."),
        ("schema", True, "report.schema: got True, wanted 1."),
        ("scheme", None, "report.scheme: got None, wanted text."),
        ("notes", "one", "report.notes: got 'one', wanted a list."),
        ("notes", ["one", 2], "report.notes[1]: got 2, wanted text."),
        ("model", [], "report.model: got [], wanted a table."),
        ("model.parameters", 1.5, "report.model.parameters: got 1.5, wanted an integer."),
        ("model.parameters", True, "report.model.parameters: got True, wanted an integer."),
        ("accuracy.float.top1", 123.0, "report.accuracy.float.top1: got 123.0, wanted 0 to 100."),
        ("accuracy.drop.mean", math.nan, "report.accuracy.drop.mean: got nan, wanted a finite "),
        ("bytes.plan", -1, "report.bytes.plan: got -1, wanted 0 or more."),
        ("layers.3.op", 7, "report.layers[3].op: got 7, wanted text."),
        ("layers.0.weight_sqnr_db", math.inf, "report.layers[0].weight_sqnr_db: got inf, wanted"),
        (
            "check.findings.0.value",
            {1},
            "report.check.findings[0].value: got {1}, wanted something",
        ),
        (
            "check.findings.0.value",
            [math.nan],
            "report.check.findings[0].value[0]: got nan, wanted",
        ),
        ("engine.compute_capabilities", [8.6], "report.engine.compute_capabilities[0]: got 8.6, "),
        ("bench.cpu.latency_ms.p95", "1", "report.bench.cpu.latency_ms.p95: got '1', wanted a "),
        ("bench.cpu.unstable", 0, "report.bench.cpu.unstable: got 0, wanted true or false."),
        ("synthesis.history", {"ce": [1, "x"]}, "report.synthesis.history.ce[1]: got 'x', wanted"),
        ("synthesis.history", {3: []}, "report.synthesis.history key: got 3, wanted text."),
        (
            "accuracy.torch_quantized.n",
            None,
            "report.accuracy.torch_quantized.n: got None, wanted ",
        ),
        ("accuracy.float.low", 99.0, "report.accuracy.float: got 98.83 outside its interval [99.0"),
        ("accuracy.drop.high", 0.1, "report.accuracy.drop: got 0.17 outside its interval [-0.34, "),
        (
            "synthesis.layer_names",
            [],
            "report.synthesis.bns_distance: got 13 values for 0 layer_na",
        ),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(path: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=r"^report\.") as caught:
        validate(changed(path, value))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_keys_may_be_added_and_optional_ones_left_out() -> None:
    report: Any = full_report()
    report["bench"]["power_w"] = 70
    del report["accuracy"]["torch_quantized"]
    del report["bench"]["cpu"]["num_threads"]
    validate(report)


def test_an_integer_passes_where_a_real_number_is_wanted() -> None:
    validate(changed("accuracy.quantized.top5", 100))


@given(value=JSON)
def test_any_json_passes_as_preprocessing_and_nothing_else_breaks(value: object) -> None:
    validate(changed("model.preprocessing", value))


@pytest.mark.fuzz
@given(value=JSON)
def test_arbitrary_json_is_refused_with_one_line(value: object) -> None:
    with pytest.raises(ValueError, match=r"\Areport[^\n]*\Z"):
        validate(value)


def test_numbers_that_json_lacks_become_none() -> None:
    values = {"a": [1.0, math.nan, (math.inf, "x")], "b": {"c": -math.inf, "d": 3}}
    assert without_nonfinite(values) == {"a": [1.0, None, [None, "x"]], "b": {"c": None, "d": 3}}
