"""What one stage found, in the lines that its command prints."""

from __future__ import annotations

from typing import Any

from report_sample import full_report

from fdda_deploy.pipeline.report.phrases import PORTABLE
from fdda_deploy.pipeline.report.summary import stage_rows


def test_evaluate_says_accuracy_or_that_nothing_was_measured() -> None:
    report: Any = full_report()
    (top1, drop) = stage_rows("evaluate", {"accuracy": report["accuracy"]})
    assert top1[1].replace("\u00a0", " ") == "98.83 % -> 98.66 % on 597 images"
    assert drop[0] == "drop"
    assert stage_rows("evaluate", {"accuracy": None})[0][1].startswith("not measured")


def test_bench_says_every_latency_and_which_are_missing() -> None:
    report: Any = full_report()
    found = dict(stage_rows("bench", report["bench"]))
    assert list(found) == ["GPU latency", "CPU latency", "CPU, float"]
    assert found["GPU latency"] == "not measured"
    assert "ms median, batch 1" in found["CPU latency"].replace("\u00a0", " ")


def test_check_counts_findings_or_says_that_the_rules_do_not_apply() -> None:
    record = {"errors": 0, "warnings": 1, "notes": 2, "applies": True}
    ((_, counts),) = stage_rows("check", record)
    assert counts.replace("\u00a0", " ") == "0 errors, 1 warning, 2 notes"
    ((_, words),) = stage_rows("check", record | {"applies": False})
    assert "do not apply" in words


def test_other_stages_let_their_files_speak() -> None:
    assert stage_rows("export", {}) == []


def test_engine_says_what_was_done_otherwise_than_asked() -> None:
    told = "--calibrator trt: TensorRT-RTX 1.7.1.116 has no calibrators; ours went in"
    for detail in (told, f"{told}; {PORTABLE}", f"{PORTABLE}; {told}"):
        assert stage_rows("engine", {"status": "built", "detail": detail}) == [("engine", told)]
    assert stage_rows("engine", {"status": "built", "detail": PORTABLE}) == []
    assert stage_rows("engine", {"status": "built", "detail": None}) == []
    assert stage_rows("engine", {"status": "skipped", "detail": "there is no plan"}) == []
