"""Where accuracy goes: in report.json always, on the page where accuracy may have fallen."""

from __future__ import annotations

import re
from typing import Any

import pytest
from report_sample import bare_report, full_report

from fdda_deploy.pipeline.report.diagnosis import HIGH_KL, SMALL_DROP, worth_showing
from fdda_deploy.pipeline.report.html import render_html
from fdda_deploy.pipeline.report.schema import validate

TITLE = "Where accuracy goes"


def report_with(drop: float) -> Any:
    """Returns a report with little to draw and this drop of top-1, in points."""
    report: Any = full_report()
    report |= {"stages": [], "layers": [], "synthesis": None, "finetune": None, "mixed": None}
    report["accuracy"]["drop"] = {"mean": drop, "low": None, "high": None}
    return report


def text_of(report: Any) -> str:
    validate(report)
    page = render_html(report, contact_sheet_png=None).replace("\u00a0", " ")
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_a_drop_shows_layer_cause_evidence_and_option() -> None:
    text = text_of(report_with(3.5))
    assert TITLE in text
    for words in (
        "layer3.0.conv2 layer3.0.relu_output 12.6 / 9.7 range outliers",
        "is 9.11 times the 99.9th percentile",
        "--observer percentile or entropy",
    ):
        assert words in text


def test_no_drop_no_finding_no_section() -> None:
    assert TITLE not in text_of(report_with(0.1))
    report = report_with(3.5)
    report["diagnosis"] = []
    assert TITLE not in text_of(report)
    assert TITLE not in text_of(bare_report())


@pytest.mark.parametrize(
    ("drop", "kl", "shown"),
    [
        (SMALL_DROP, None, False),
        (SMALL_DROP + 0.01, None, True),
        (-2.0, HIGH_KL, False),
        (-2.0, HIGH_KL + 0.01, True),
        (None, None, True),
        (None, 0.0, True),
    ],
)
def test_it_is_shown_for_a_drop_a_high_kl_or_nothing_measured(
    drop: float | None, kl: float | None, shown: bool
) -> None:
    report = report_with(0.0 if drop is None else drop)
    accuracy = None if drop is None else report["accuracy"]
    assert worth_showing(report["diagnosis"], accuracy, kl) == shown
    assert not worth_showing([], accuracy, kl)


def test_names_from_outside_stay_text() -> None:
    report = report_with(3.5)
    report["diagnosis"][0] |= {"node": "<b>x</b>", "tensor": "<i>y</i>", "evidence": "<u>z</u>"}
    page = render_html(report, contact_sheet_png=None)
    for escaped in ("&lt;b&gt;x&lt;/b&gt;", "&lt;i&gt;y&lt;/i&gt;", "&lt;u&gt;z&lt;/u&gt;"):
        assert escaped in page


def test_a_finding_without_a_cause_is_refused() -> None:
    report = report_with(3.5)
    del report["diagnosis"][0]["cause"]
    with pytest.raises(ValueError, match=r"^report\.diagnosis\[0\]\.cause: missing\.$"):
        validate(report)
