"""`fdda-deploy package` and `fdda-deploy verify` at the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fdda_deploy.cli import main


@pytest.fixture(scope="module")
def graph_package(finished_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("commands") / "graph"
    assert main(["package", str(finished_build), "--out", str(out), "--no-plan", "--quiet"]) == 0
    return out


def test_package_prints_what_it_wrote_and_how_to_check_it(
    finished_build: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p"
    assert main(["package", str(finished_build), "--out", str(out), "--triton-name", "net"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"fdda-deploy verify {out}" in printed.out
    assert "triton/net, loads the graph" in printed.out


def test_package_json_is_the_manifest(
    finished_build: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p"
    assert main(["package", str(finished_build), "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["out"] == str(out)
    assert printed["manifest"] == json.loads((out / "manifest.json").read_text())


def test_verify_of_a_loadable_package_is_one_line_and_exit_code_0(
    graph_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(graph_package)]) == 0
    verdict, probe = capsys.readouterr().out.splitlines()
    assert verdict.startswith(f"{graph_package}: loads: ONNX Runtime ")
    assert probe.startswith("self-test: as when it was packaged, relative L2 ")


def test_verify_of_a_changed_package_is_one_line_and_exit_code_1(
    graph_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = graph_package / "extra"
    extra.touch()
    try:
        assert main(["verify", str(graph_package)]) == 1
        printed = capsys.readouterr()
        assert printed.out == (
            f"{graph_package}: does not load: not as it was packaged: extra: not in the manifest. "
            "Get the package again\n"
        )
        assert main(["verify", str(graph_package), "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["problems"] == ["extra: not in the manifest"]
        assert main(["verify", str(graph_package), "--quiet"]) == 1
        assert capsys.readouterr().out == ""
    finally:
        extra.unlink()


def test_verify_json_of_no_package_is_still_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tmp_path), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["loads"] is False
    assert "no manifest.json in it" in printed["reason"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["verify", "no-such-folder"], 1, "no-such-folder: no such folder"),
        (["package", "no-such-folder", "--out", "x"], 1, "Give the result folder of a build"),
        (["package", "no-such-folder"], 2, "--out"),
        (["package", "x", "--out", "y", "--no-plan", "--no-onnx"], 2, "nothing to deploy"),
    ],
    ids=["verify nothing", "package nothing", "no --out", "nothing left"],
)
def test_what_cannot_be_done_is_one_line_on_stderr(
    words: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert says in printed.err


def test_a_wish_out_of_range_is_wrong_usage(
    finished_build: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["package", str(finished_build), "--out", str(tmp_path / "p"), "--max-batch", "9999"]
    assert main(words) == 2
    assert "--max-batch 9999: the plan takes" in capsys.readouterr().err
