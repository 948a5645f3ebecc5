"""A bound that makes no sense, or that nothing holds, on the real road: one line, nothing left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from refused import Shell


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--max-drop -0.5", 2, "--max-drop: got -0.5, wanted 0 or more."),
        ("--max-drop 1 --tune-data {folder}/nowhere", 1, "nowhere: "),
        ("--max-drop 1 --tune-data {folder}/classes.txt", 1, "classes.txt"),
        (
            "--max-drop 1 --tune-data {folder}/calib.npz --eval-data {folder}/./calib.npz",
            1,
            "calib.npz: these images measure the result, so they must not choose it. Give others.",
        ),
    ],
)
def test_a_bound_or_tune_images_that_make_no_sense_are_told(
    shell: Shell, words: str, code: int, message: str
) -> None:
    refused = shell.refused(words.format(folder=shell.folder))
    assert (refused.code, message in refused.line) == (code, True), refused.line


def test_a_bound_that_nothing_holds_reports_the_best_found(shell: Shell, tmp_path: Path) -> None:
    """Ranges from grey images clip coloured ones at every layer that is quantized at all."""
    random = np.random.default_rng(5)
    colors, noise = random.uniform(0, 255, (400, 1, 1, 3)), random.normal(0, 40, (400, 16, 16, 3))
    np.savez(tmp_path / "tune.npz", x=np.clip(colors + noise, 0, 255).astype(np.uint8))
    np.savez(tmp_path / "grey.npz", x=random.integers(125, 131, (24, 16, 16, 3), dtype=np.uint8))
    line = shell.refused(
        f"--max-drop 0.1 --recipe none --no-finetune --calib-data {tmp_path}/grey.npz "
        f"--tune-data {tmp_path}/tune.npz"
    ).line
    assert line.startswith("--max-drop 0.1: no widths hold it on 400 images (")
    assert "one image is 0.25 points there, so no answer may change. The best found loses" in line
    assert "or more, other --tune-data, or a wider --scheme." in line
