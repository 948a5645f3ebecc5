"""The verbs do what the commands of the same name do, and take the same settings."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fdda_deploy
from fdda_deploy import api
from fdda_deploy.api.settings import resolved
from fdda_deploy.cli.checking import CheckOptions
from fdda_deploy.cli.options import Options
from fdda_deploy.errors import ConfigError, FddaDeployError

VERBS = ("build", "synthesize", "quantize", "export", "check")
PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def fields(options: type[Options]) -> set[str]:
    return {field.name for field in dataclasses.fields(options)}


def test_all_that_is_public_is_named_and_there() -> None:
    assert fdda_deploy.__all__ == sorted(fdda_deploy.__all__, key=lambda n: (n.islower(), n))
    assert {*VERBS, "BuildResult", "CheckResult", "FddaDeployError", "__version__"} == set(
        fdda_deploy.__all__
    )
    assert set(fdda_deploy.__all__) <= set(dir(fdda_deploy))
    for name in VERBS:
        assert getattr(fdda_deploy, name) is getattr(api, name)
    with pytest.raises(AttributeError, match="no attribute 'biuld'"):
        _ = fdda_deploy.biuld  # type: ignore[attr-defined]  # that is the point


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_documented_down_to_its_errors(verb: str) -> None:
    text = inspect.getdoc(getattr(api, verb)) or ""
    assert text.startswith("Returns ")
    for name in inspect.signature(getattr(api, verb)).parameters:
        assert re.search(rf"^    {name}: \S", text, re.MULTILINE)
    assert f"the options of ``fdda-deploy {verb}``" in text
    order = [text.index(part) for part in ("\nArgs:\n", "\nRaises:\n    FddaDeployError: ")]
    assert order == sorted(order)
    assert "Example:" not in text[: order[-1]]


def test_help_shows_them_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    help(fdda_deploy.quantize)
    shown = capsys.readouterr().out
    assert "``calibration.json``" in shown
    assert "None takes the one in ``config``" in shown
    assert "\n        progress: Show a bar" in shown


def test_the_settings_are_the_options() -> None:
    of_the_terminal = {"model", "config", "quiet", "json_output"}
    assert set(api.Settings.__annotations__) == fields(Options) - of_the_terminal
    of_check = fields(CheckOptions) - of_the_terminal - {"output_format", "fail_on"}
    assert set(api.CheckSettings.__annotations__) == of_check


def test_a_call_resolves_to_the_configuration_of_the_command(tmp_path: Path) -> None:
    called = resolved(
        "build",
        "nets.py:a",
        None,
        {"input_size": (224, 320), "sm": (86, 89), "bits": 4, "out": tmp_path, "finetune": False},
    )
    assert (
        called
        == Options(
            "nets.py:a", input_size="224x320", sm="86,89", bits=4, out=str(tmp_path), finetune=False
        ).build_config()
    )


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_setting_is_refused_with_the_nearest(verb: str) -> None:
    with pytest.raises(ConfigError) as caught:
        getattr(api, verb)("digits", calib_date="x")
    assert str(caught.value) == (
        f"{verb}(calib_date=...): unknown setting. Did you mean 'calib_data'? "
        f"`fdda-deploy {verb} --help` lists them all."
    )


def test_a_wrong_value_and_no_model_are_refused_before_anything_is_loaded() -> None:
    code = (
        "import sys, fdda_deploy\n"
        "for call in ({'effort': 'norml'}, {'model': None}):\n"
        "    try: fdda_deploy.build(**{'model': 'digits', **call})\n"
        "    except fdda_deploy.FddaDeployError as error: print(error)\n"
        "print([name for name in ('torch', 'onnx', 'typer', 'rich') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("--effort: unknown 'norml'. Did you mean 'normal'?")
    assert lines[1].startswith("no model named")
    assert lines[2] == "[]"


def test_a_finished_build_comes_back_with_its_files_report_and_stages(
    finished_build: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result"
    shutil.copytree(finished_build, out, symlinks=True)
    result = fdda_deploy.build(config=out / "config.toml", out=out)
    assert result.out == out
    assert result.report == json.loads((out / "report.json").read_text())
    assert result.top1_drop == result.report["accuracy"]["drop"]["mean"]
    assert result.files["model.qdq.onnx"] == out / "model.qdq.onnx"
    assert all(path.is_file() for path in result.files.values())
    assert [stage.name for stage in result.stages][0::11] == ["load", "report"]
    exported = fdda_deploy.export(config=out / "config.toml", out=out)
    assert exported.report is exported.top1_drop is None
    assert exported.record["qdq_bytes"] == exported.files["model.qdq.onnx"].stat().st_size
    images = fdda_deploy.synthesize(config=out / "config.toml", out=out).files
    assert images["synthetic/classes"].is_dir()
    assert fdda_deploy.quantize(config=out / "config.toml", out=out).record["layers"]
    assert fdda_deploy.check(config=out / "config.toml", out=out).errors == 0
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "\x1b" not in captured.err


def test_the_examples_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102  # our own page
    printed = capsys.readouterr().out
    assert len(blocks) == 3
    assert "model.qdq.onnx" in printed
    assert "unknown setting. Did you mean 'calib_data'?" in printed


def test_the_root_of_all_errors_can_be_caught_by_its_public_name() -> None:
    assert fdda_deploy.FddaDeployError is FddaDeployError
