"""Every command that prints a result prints it with --json as one document, alone on stdout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer

from fdda_deploy.cli import app, main

RESULT_KEYS = {"out", "stages", "lines", "result"}
STAGES = ("quantize", "export", "check", "bench", "evaluate")
KEYS: dict[str, set[str] | None] = {
    **dict.fromkeys(STAGES, RESULT_KEYS),
    "engine": {*RESULT_KEYS, "plan"},
    "synthesize": {"out", "recipe", "num_images"},
    "sensitivity": {"narrow", "wide"},
    "build": {"schema", "accuracy", "bench", "layers"},
    "report": {"schema", "accuracy", "bench", "layers"},
    "check FILE": {"file", "target", "errors", "warnings", "notes", "findings"},
    "bench FILE": {"environment", "records", "trtexec"},
    "compare": {"a", "b", "outputs", "beyond"},
    "cache show": {"file", "format", "num_tensors", "tensors", "note"},
    "cache import": {"out", "format", "num_tensors"},
    "cache export": {"out", "format", "tensors"},
    "cache diff": {"same", "common", "only_first", "only_second", "changed"},
    "cache apply": {"out", "target", "activations", "weights", "left_float", "missing"},
    "package": {"out", "manifest"},
    "verify": {"folder", "loads", "reason", "probes"},
    "models": None,  # a list
    "schema": None,  # a list
    "doctor": {"versions", "gpu", "backends"},
}
"""The least keys of each document: programs read them, so they stay."""

GPU_ONLY = {"refit"}
"""Cannot be run here: test_refit_command.py has what it says then."""


@pytest.fixture
def result(finished_build: Path, tmp_path: Path) -> Path:
    """A copy of a finished build, whose stages are taken from it."""
    copy = tmp_path / "result"
    shutil.copytree(finished_build, copy, symlinks=True)
    return copy


def line(command: str, result: Path, folder: Path) -> list[str]:
    """Returns the words of a command that works on ``result`` and writes into ``folder``."""
    table, record = result / "calibration.cache", result / "calibration.json"
    float_onnx, qdq = result / "model.fp32.onnx", result / "model.qdq.onnx"
    words: dict[str, list[Any]] = {
        "check FILE": ["check", float_onnx],
        "bench FILE": ["bench", qdq, "--seconds", "0.02"],
        "compare": ["compare", float_onnx, qdq],
        "cache show": ["cache", "show", table],
        "cache import": ["cache", "import", table, "--out", folder / "a.json"],
        "cache export": ["cache", "export", record, "--format", "json", "--out", folder / "b.json"],
        "cache diff": ["cache", "diff", table, table],
        "cache apply": ["cache", "apply", record, float_onnx, "--out", folder / "c.onnx"],
        "package": ["package", result, "--out", folder / "p", "--no-plan"],
        "verify": ["verify", folder / "absent"],
        "models": ["models"],
        "schema": ["schema"],
        "doctor": ["doctor"],
    }
    own = [command, "--config", result / "config.toml", "--out", result]
    return [str(word) for word in words.get(command, own)]


def leaves(command: Any, prefix: str = "") -> list[str]:
    found = getattr(command, "commands", None)
    if found is None:
        return [prefix.strip()]
    return [leaf for name in found for leaf in leaves(found[name], f"{prefix} {name}")]


def test_the_table_below_has_every_command() -> None:
    commands = leaves(typer.main.get_command(app))
    assert {name.removesuffix(" FILE") for name in KEYS} == set(commands) - GPU_ONLY


@pytest.mark.parametrize("command", KEYS)
def test_stdout_is_one_json_document_with_the_keys_it_always_has(
    command: str,
    result: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fdda_deploy.pipeline.stages import running

    monkeypatch.setattr(running, "BENCH_SECONDS", 0.02)
    code = main([*line(command, result, tmp_path), "--json"])
    captured = capsys.readouterr()
    assert captured.err == ""
    found = json.loads(captured.out, parse_constant=pytest.fail)
    assert code == (1 if command == "verify" else 0)
    wanted = KEYS[command]
    assert isinstance(found, list) if wanted is None else wanted <= set(found)
