"""The command line under several ranks: one of them writes and prints, and all end well."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from several_ranks import RANKS, import_what_tracing_takes, outcomes

from fdda_deploy.cli import main

pytestmark = RANKS


@pytest.fixture(autouse=True, scope="module")
def _imported() -> None:
    """Imports in this process what every child would otherwise import for itself."""
    import fdda_deploy.pipeline.run  # noqa: F401  # commands import it when they start

    import_what_tracing_takes()
    assert said(["synthesize"])[0] == 2  # names no network; reading options imports pydantic


def said(arguments: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def test_rank_0_alone_writes_and_prints(input_folder: Path, tmp_path: Path) -> None:
    out, network = tmp_path / "out", input_folder / "nets.py"
    command = ["synthesize", f"{network}:tiny", "--weights", str(input_folder / "tiny.safetensors")]
    command += ["--recipe", "gdfq", "--num-steps", "4", "--num-images", "8", "--out", str(out)]
    (leader, follower) = outcomes(lambda: said(command))
    assert leader[0] == follower[0] == 0, leader[2] + follower[2]
    assert "8 in" in leader[1]
    assert follower[1:] == ("", "")
    with np.load(out / "synthetic" / "images.npz") as made:
        assert len(made["x"]) == 8
    assert not list(out.rglob("*.partial"))


def test_error_of_the_leader_ends_the_others_with_it(tmp_path: Path) -> None:
    command = ["synthesize", "digits", "--calib-data", str(tmp_path / "none"), "--out"]
    found = outcomes(lambda: said([*command, str(tmp_path / "out")]))
    assert [code for code, _, _ in found] == [1, 1]
    assert "error:" in found[0][2]
    assert "another rank stopped" in found[1][2]
