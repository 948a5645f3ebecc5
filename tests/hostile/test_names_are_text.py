"""Names that others chose stay names: on the terminal, in JSON and in SARIF."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from payloads import Command, shifted

from fdda_deploy.cli.results import print_table

EVIL = '<script>alert(1)</script>\x1b[2J\x07\u202e"],["\r\n&'
STEERING = ("\x1b", "\x07", "\u202e", "\r")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "ev\x1b[2Jil<b>.onnx"
    path.write_bytes(shifted(EVIL))
    return path


def test_a_name_cannot_steer_the_terminal(command: Command, model: Path) -> None:
    code, out, err = command.run("check", model)
    assert (code, err) == (1, "")
    assert "<script>alert(1)</script>" in out
    assert not any(mark in out for mark in STEERING)


def test_a_name_in_an_error_cannot_steer_the_terminal(command: Command, tmp_path: Path) -> None:
    told = command.refused("check", tmp_path / "no\x1b[2J\nsuch.onnx")
    assert told.isprintable()
    assert "no\ufffd[2J such.onnx" in told


@pytest.mark.parametrize("form", ["json", "sarif"])
def test_a_name_comes_back_from_json_as_it_was(command: Command, model: Path, form: str) -> None:
    code, out, _ = command.run("check", model, "--format", form)
    assert code == 1
    assert out.isascii()
    assert not any(mark in out for mark in STEERING)
    found = json.loads(out)
    if form == "json":
        assert {finding["node"] for finding in found["findings"]} >= {EVIL}
        return
    results = found["runs"][0]["results"]
    places = [place for result in results for place in result["locations"]]
    names = [name for place in places for name in place.get("logicalLocations", ())]
    assert EVIL in [name["name"] for name in names]


def test_names_in_a_table_are_shown_and_not_done(command: Command, tmp_path: Path) -> None:
    table = tmp_path / "t.json"
    table.write_text(json.dumps({EVIL: {"amax": 2.0, "scale": 2.0 / 127}}))
    code, out, err = command.run("cache", "show", table)
    assert not any(mark in out + err for mark in STEERING), (code, out, err)


def test_bytes_of_a_name_that_are_no_text_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([("a\udcff.png", "b")])
    assert capsys.readouterr().out == "a\ufffd.png  b\n"
