"""doctor, models, the version and the help: what needs no network; and a reader that leaves."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import fdda_deploy
from fdda_deploy.cli import main


def test_doctor_shows_versions_and_an_install_line_for_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["fdda-deploy"] == fdda_deploy.__version__
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"torch                       {found['versions']['torch']}\n" in out
    for backend in found["backends"]:
        assert backend["name"] in out
        assert backend["install"] is None or f"  install: {backend['install']}\n" in out


def test_models_lists_digits_first_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert entries[0]["name"] == "digits"
    assert [line.split()[0] for line in lines] == [entry["name"].split()[0] for entry in entries]


def test_the_version_is_printed_and_no_arguments_show_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fdda-deploy {fdda_deploy.__version__}\n"
    assert main([]) == 0
    assert "build digits --bits 4" in capsys.readouterr().out


def test_a_reader_that_leaves_early_meets_no_traceback() -> None:
    command = [sys.executable, "-c", "from fdda_deploy.cli import main; raise SystemExit(main())"]
    with subprocess.Popen(
        [*command, "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
