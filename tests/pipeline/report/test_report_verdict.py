"""The headline claims what the interval supports, and nothing more."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from report_sample import bare_report, full_report

from fdda_deploy.pipeline.report.phrases import MINUS, SPACE, TIMES
from fdda_deploy.pipeline.report.summary import summary_rows
from fdda_deploy.pipeline.report.verdict import verdict


def typed(text: str) -> str:
    """Returns ``text`` as a keyboard has it: plain spaces, ``x`` and ``-``."""
    return text.replace(SPACE, " ").replace(TIMES, "x").replace(MINUS, "-")


def typed_rows(report: Any, folder: Path | None = None) -> dict[str, str]:
    return {what: typed(value) for what, value in summary_rows(report, folder=folder)}


def with_drop(mean: float, low: float | None, high: float | None) -> Any:
    report: Any = full_report()
    report["accuracy"]["drop"] = {"mean": mean, "low": low, "high": high}
    return report


@pytest.mark.parametrize(
    ("drop", "tone", "headline"),
    [
        ((0.17, -0.34, 0.67), "good", "No measurable loss, 3.4x smaller"),
        ((0.5, -3.0, 4.0), "caution", "No loss shown, 3.4x smaller"),
        ((0.4, 0.1, 0.7), "good", "Top-1 falls by 0.40 points, 3.4x smaller"),
        ((0.9, 0.1, 1.7), "caution", "Top-1 falls by 0.90 points, 3.4x smaller"),
        ((9.0, 7.0, 11.0), "bad", "Top-1 falls by 9.00 points, 3.4x smaller"),
        ((-0.6, -1.0, -0.2), "good", "Top-1 rises by 0.60 points, 3.4x smaller"),
        ((0.2, None, None), "caution", "Top-1 changes by 0.20 points, 3.4x smaller"),
    ],
    ids=["within", "few-images", "small", "doubtful", "large", "gain", "no-interval"],
)
def test_the_headline_follows_the_interval(drop: Any, tone: str, headline: str) -> None:
    said = verdict(with_drop(*drop))
    assert said.tone == tone
    assert typed(said.headline) == headline


def test_a_wide_interval_says_what_it_cannot_rule_out() -> None:
    text = typed(verdict(with_drop(0.5, -3.0, 4.0)).sentences[0])
    assert text.endswith("597 images cannot rule out a loss of 4.00 points.")


def test_broken_rules_and_a_failed_build_spoil_the_verdict() -> None:
    report: Any = full_report()
    report["check"]["errors"] = 2
    report["engine"]["status"] = "failed"
    said = verdict(report)
    assert (said.tone, said.headline.split(", ")[-1]) == ("bad", "but not ready to ship")
    assert typed(said.sentences[-2]) == "The exported graph breaks TensorRT's rules at 2 places."
    assert said.sentences[-1] == "No plan: the builder refused the graph."


def test_a_graph_that_grew_is_called_larger() -> None:
    report: Any = full_report()
    report["bytes"] |= {"fp32_onnx": 100, "qdq_onnx": 150}
    assert typed(verdict(report).headline).endswith("1.5x larger")
    assert typed_rows(report)["ONNX"] == "100 bytes -> 150 bytes (1.5x larger)"


def test_without_accuracy_the_headline_claims_none() -> None:
    said = verdict(bare_report())
    assert (said.tone, said.headline) == ("unknown", "Accuracy not measured")


def test_the_summary_says_what_was_and_what_was_not_measured() -> None:
    rows = typed_rows(full_report(), Path("out/digits-w4a8"))
    assert rows["top-1"] == "98.83 % -> 98.66 % on 597 images"
    assert rows["drop"] == "0.17 points, 95 % interval -0.34 to 0.67"
    assert rows["ONNX"] == "707 kB -> 208 kB (3.4x smaller)"
    assert rows["plan"] == "263 kB, TensorRT-RTX 1.7.1.2"
    assert rows["GPU latency"] == "not measured"
    assert "on the CPU" in rows["CPU latency"]
    assert rows["report"] == str(Path("out/digits-w4a8/report.html"))


def test_the_summary_of_a_bare_build_names_the_missing_option() -> None:
    rows = dict(summary_rows(bare_report()))
    assert "--eval-data" in rows["top-1"]
    assert (rows["ONNX"], rows["plan"], rows["GPU latency"]) == (
        "not written",
        "not built",
        "not measured",
    )
    assert "report" not in rows


def test_the_summary_shows_a_failed_plan_and_a_gain() -> None:
    report = with_drop(-0.6, -1.0, -0.2)
    report["engine"]["status"], report["bytes"]["plan"] = "failed", None
    rows = typed_rows(report)
    assert rows["drop"] == "-0.60 points, 95 % interval -1.00 to -0.20"
    assert rows["plan"] == "failed, TensorRT-RTX 1.7.1.2"


def test_a_model_name_cannot_move_the_terminals_cursor() -> None:
    report: Any = full_report()
    report["model"]["name"] = "a\x1b[2Jb\r\nc"
    text = "".join(itertools.chain.from_iterable(summary_rows(report, folder=Path("o\x07"))))
    assert not {"\x1b", "\r", "\n", "\x07"} & set(text)
