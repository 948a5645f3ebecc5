"""A sweep over batches is a curve in the report; without one there is no chart."""

from __future__ import annotations

from typing import Any

from report_sample import full_report

from fdda_deploy.pipeline.report.html import render_html
from fdda_deploy.pipeline.report.latency_plot import sweep_svg
from fdda_deploy.pipeline.report.schema import validate


def swept() -> dict[str, Any]:
    """A report with two batches of one graph."""
    report: dict[str, Any] = full_report()
    once = report["bench"]["cpu"]
    report["bench"]["sweep"] = [
        once | {"batch": batch, "images_per_s": 500.0 * batch} for batch in (1, 8)
    ]
    return report


def test_each_batch_is_a_point_that_readers_without_eyes_hear_of() -> None:
    report = swept()
    validate(report)
    svg = sweep_svg(report["bench"]["sweep"])
    assert svg is not None
    assert "batch 1 500 images/s at" in svg
    assert "batch 8 4000 images/s at" in svg


def test_the_page_shows_the_curve_where_batches_were_swept() -> None:
    caption = "Images per second by the median latency of a batch"
    assert caption in render_html(swept(), contact_sheet_png=None)
    assert caption not in render_html(full_report(), contact_sheet_png=None)


def test_without_a_sweep_nothing_is_drawn() -> None:
    assert sweep_svg([]) is None
