"""benchmarks/peers_page.py and peers_plot.py: every figure, every refusal and every loss shown."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import peers_measure
import peers_page
import peers_plot
import pytest
from peer_rows import document, failed, row
from peers_measure import unpacked
from peers_tools import MODELOPT, ORT, OURS, VARIANTS

ROOT = Path(__file__).parents[2]
ROWS = [
    row(ORT, "minmax", rtx_accepts=False, rtx_words="no INT32 | here", plan_bytes=None),
    failed(MODELOPT, "max", "does not install: `pip` said no"),
    row(OURS, "trt"),
    row(OURS, "rtx"),
    row(OURS, "ort-cpu", peak_mib=1600.0),
]


def test_what_failed_and_what_was_refused_is_said_in_their_words_once():
    again = row(ORT, "entropy", rtx_accepts=False, rtx_words="no INT32 | here", plan_bytes=None)
    page = peers_page.page(document(*ROWS, again))
    assert (
        "ModelOpt (max w8a8), why there are no figures: `does not install: 'pip' said no`" in page
    )
    words = "- ONNX Runtime (minmax w8a8; entropy w8a8), the builder's words: `no INT32 | here`"
    assert page.count(words) == 1
    assert "| ModelOpt | max | w8a8 | not measured | not measured | not measured |" in page


def test_accuracy_by_another_onnx_runtime_says_so():
    page = peers_page.page(document(row(MODELOPT, "max", ort_words="cannot load it")))
    assert "the ONNX Runtime it was made with, because ours says: `cannot load it`" in page


def test_a_file_that_was_not_timed_has_the_words_why():
    page = peers_page.page(document(row(MODELOPT, "max", latency_words="no kernel for it")))
    assert "- ModelOpt (max w8a8), why it was not timed: `no kernel for it`" in page


def test_the_page_says_when_each_row_was_measured_and_how_long_the_command_took():
    found = document(*ROWS)
    page = peers_page.page(found)
    assert "2 at a time on CPUs of their own" in page
    assert "The command measured 5 rows in 2 minutes, preparations and latency included." in page
    assert "| 2026-11-22 0123456 |" in page
    assert "| 2026-11-22 |" in page
    found["runs"] = []
    assert "How long the command took was not recorded." in peers_page.page(found)


def test_every_loss_is_named_and_all_are_counted():
    assert peers_page.losses(ROWS) == (
        "In sum: 2 won, 5 tied, 1 lost, 8 not measured. Lost: **peak MiB** (n against ONNX "
        "Runtime)."
    )
    assert peers_page.losses(ROWS[2:4]) == "In sum: 0 won, 0 tied, 0 lost, 16 not measured."


def test_the_verdicts_have_both_figures():
    table = peers_page.verdict_table(ROWS)
    assert "| n | ONNX Runtime | tie: 0.0, 0.0 | tie: 0.0100, 0.0100 | tie: 10, 10 |" in table
    assert "loss: 1600, 800 | win: yes, no | win: 0.50, refused |" in table
    assert "| n | ModelOpt | not measured: 0.0, not measured |" in table


def test_the_readme_has_ours_by_purpose_and_leaves_out_what_a_file_is_not_for():
    table = peers_page.readme_table(ROWS)
    assert "| n | **ours**, for TensorRT | 0.0 | 0.0100 | 10 | 800 | yes | 0.50 |  |" in table
    assert "| n | **ours**, for the CPU | 0.0 | 0.0100 | 10 | 1600 |  |  | 0.50 |" in table
    assert "| n | ONNX Runtime | 0.0 | 0.0100 | 10 | 800 | no | refused | 0.50 |" in table


def test_the_table_takes_the_place_between_its_marks():
    text = "before\n<!-- peers -->\nold\n<!-- /peers -->\nafter\n"
    found = peers_page.with_block(text, "new \\1\n")
    assert found == "before\n<!-- peers -->\nnew \\1\n<!-- /peers -->\nafter\n"
    with pytest.raises(ValueError, match=r"README: 0 blocks between .*, want 1\."):
        peers_page.with_block("no marks", "new\n")


def test_a_plot_is_the_same_each_time_and_names_every_row(tmp_path):
    for name in ("a.svg", "b.svg"):
        peers_plot.draw(ROWS, tmp_path / name)
    first = (tmp_path / "a.svg").read_bytes()
    assert first == (tmp_path / "b.svg").read_bytes()
    assert ET.fromstring(first).tag.endswith("svg")  # noqa: S314  # our own file
    for shown in (b"ONNX Runtime, minmax, w8a8", b"refused", b"not measured"):
        assert shown in first


def test_every_variant_has_a_name_and_a_file_name_of_its_own():
    assert len({tuple(variant.key.items()) for variant in VARIANTS}) == len(VARIANTS)
    assert len({variant.slug for variant in VARIANTS}) == len(VARIANTS)
    assert all(
        set(variant.slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_") for variant in VARIANTS
    )


COMMITTED = ROOT / "benchmarks" / "results" / "peers.json"


def committed() -> dict:
    return json.loads(COMMITTED.read_text(encoding="utf-8"))


def test_the_committed_page_and_readme_are_those_of_the_committed_rows():
    found = committed()
    assert (ROOT / "docs/peers.md").read_text(encoding="utf-8") == peers_page.page(found)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert peers_page.with_block(readme, peers_page.readme_table(found["rows"])) == readme


def test_committed_drops_are_those_of_the_committed_answers():
    measured = [found for found in committed()["rows"] if "drop" in found]
    assert measured
    for found in measured:
        right = unpacked(found["right"], found["n"])
        assert 100 * right.mean() == pytest.approx(found["top1"])
        assert found["drop"]["mean"] == pytest.approx(found["float_top1"] - found["top1"])


def test_committed_ratios_are_those_of_the_committed_rounds():
    timed = [found["latency"] for found in committed()["rows"] if "latency" in found]
    assert timed
    for found in timed:
        assert peers_measure.compared(found["round_ms"], found["float_round_ms"]) == found
