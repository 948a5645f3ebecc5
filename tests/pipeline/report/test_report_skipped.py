"""Damaged images that were left out are counted and named, whichever stage a build ends with."""

from __future__ import annotations

from fdda_deploy.pipeline.report.skipped import skipped_images


def test_each_set_with_damaged_images_is_one_sentence() -> None:
    records = {
        "load": {"classes": 4},
        "quantize": {"skipped": ["a.png (cut)", "b.png (cut)", "c.png (cut)", "d.png (cut)"]},
        "evaluate": {"skipped": ["e.png (no image)"]},
    }
    first, second = skipped_images(records)
    shown = "a.png (cut); b.png (cut); c.png (cut), and 1 more."
    assert first == f"4 damaged calibration images were skipped: {shown}"
    assert second == "1 damaged evaluation images were skipped: e.png (no image)."


def test_nothing_is_said_of_whole_sets_and_of_stages_that_did_not_run() -> None:
    assert skipped_images({"quantize": {"skipped": []}}) == []
    assert skipped_images({}) == []


def test_a_name_cannot_move_the_cursor() -> None:
    (said,) = skipped_images({"quantize": {"skipped": ["a\x1b[2J\n.png (cut)"]}})
    assert "\x1b" not in said
    assert "\n" not in said
