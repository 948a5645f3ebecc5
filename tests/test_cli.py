"""The commands: each runs the road up to its stage, prints one result, and fails in one line."""

from __future__ import annotations

import dataclasses
import errno
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from fdda_deploy.cli import INTERRUPTED, main
from fdda_deploy.cli.options import Options
from fdda_deploy.config import BuildConfig, config_from
from fdda_deploy.config.sections import SECTIONS
from fdda_deploy.config.values import settings_of
from fdda_deploy.errors import ConfigError, ExportError, FddaDeployError
from fdda_deploy.quant.scheme import NUMBERS


@dataclasses.dataclass(frozen=True)
class Result:
    report: dict[str, object] | None
    follows: bool = False
    out: Path = Path("out/digits-w4a8")
    stages: list[dict[str, object]] = dataclasses.field(default_factory=list)
    lines: list[tuple[str, str]] = dataclasses.field(
        default_factory=lambda: [("top-1", "98.3 %"), ("drop [points]", "0.5")]
    )
    record: dict[str, object] = dataclasses.field(default_factory=lambda: {"qdq_bytes": 5})


class Road:
    """Stands where the pipeline is, which the command line only calls: keeps what it was asked."""

    def __init__(self) -> None:
        self.config: BuildConfig | None = None
        self.until = ""
        self.quiet = False
        self.act: Callable[[], Result] = lambda: Result({"schema": 1})

    def build(self, config: BuildConfig, *, until: str, console: object) -> Result:
        self.config, self.until, self.quiet = config, until, bool(getattr(console, "quiet", None))
        return self.act()


@pytest.fixture
def road(monkeypatch: pytest.MonkeyPatch) -> Road:
    road = Road()
    module = types.ModuleType("fdda_deploy.pipeline.run")
    module.__dict__["build"] = road.build
    monkeypatch.setitem(sys.modules, "fdda_deploy.pipeline.run", module)
    return road


def fail_with(error: BaseException) -> Callable[[], Result]:
    def act() -> Result:
        raise error

    return act


@pytest.mark.parametrize(
    ("command", "until"),
    [
        ("build", "report"),
        ("synthesize", "synthesize"),
        ("quantize", "quantize"),
        ("export", "export"),
        ("check", "check"),
        ("engine", "engine"),
        ("bench", "bench"),
        ("evaluate", "evaluate"),
        ("report", "report"),
    ],
)
def test_each_command_runs_the_road_up_to_its_stage(road: Road, command: str, until: str) -> None:
    assert main([command, "digits", "--bits", "8", "--seed", "3"]) == 0
    assert road.until == until
    assert road.config == config_from(None, {"model": "digits", "bits": 8, "seed": 3})


def test_every_setting_has_an_option_and_every_option_is_a_setting() -> None:
    settings = {name for section in SECTIONS.values() for name in settings_of(section)}
    options = {field.name for field in dataclasses.fields(Options)}
    only_options = {"model", "bits", "scheme", "config", "quiet", "json_output"}
    only_in_toml = {"name", "overrides"}  # MODEL, and a table
    from_scheme = {"numbers"}
    assert settings - only_in_toml - from_scheme == options - only_options


@pytest.mark.parametrize(
    ("scheme", "numbers"), [("w8a8", "integer"), *((name, name) for name in NUMBERS[1:])]
)
def test_the_scheme_reaches_every_kind_of_numbers(road: Road, scheme: str, numbers: str) -> None:
    assert main(["build", "digits", "--scheme", scheme]) == 0
    assert road.config is not None
    assert road.config.quantize.numbers == numbers


def test_all_options_reach_the_configuration(road: Road) -> None:
    line = (
        "build nets.py:small --weights w.pth --input-size 224x320 --resize 256 --mean 0.5,0.5,0.5 "
        "--std 1,1,1 --num-classes 10 --calib-data c --eval-data e --classes k.txt --calib-limit 5 "
        "--eval-limit 6 --max-damaged 0 --scheme w4a4 --first-last-bits 4 --observer minmax "
        "--calibrate-on both --no-finetune --finetune-steps 9 --recipe gdfq --schedule reduced "
        "--num-steps 7 --num-images 8 --backend rtx --target rtx --sm 86,120 --out o --device cpu "
        "--seed 1 --batch-size 2 --threads 2 --no-cache --quiet"
    )
    assert main(line.split()) == 0
    assert road.config is not None
    assert road.quiet
    assert road.config.model.input_size == (224, 320)
    assert road.config.data.max_damaged == 0
    assert road.config.quantize.scheme.name == "w4a4"
    assert road.config.quantize.finetune is False
    assert road.config.engine.sm == (86, 120)
    assert road.config.run.no_cache
    defaults = BuildConfig(road.config.model)
    for section in ("data", "synthesis", "engine"):
        assert getattr(road.config, section) != getattr(defaults, section)


def test_a_config_file_names_the_model_and_flags_win(road: Road, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[model]\nname = 'resnet18'\n[quantize]\nbits = 4\n")
    assert main(["build", "--config", str(file), "--bits", "8"]) == 0
    assert road.config == config_from(None, {"model": "resnet18", "bits": 8})


def test_the_result_is_a_short_table_on_stdout(
    road: Road, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "digits"]) == 0
    assert capsys.readouterr().out == "top-1          98.3 %\ndrop [points]  0.5\n"
    assert main(["build", "digits", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_json_is_the_report_or_what_there_is_before_it(
    road: Road, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "digits", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1}
    road.act = lambda: Result(None)
    assert main(["export", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "out": "out/digits-w4a8",
        "stages": [],
        "lines": {"top-1": "98.3 %", "drop [points]": "0.5"},
        "result": {"qdq_bytes": 5},
    }


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ExportError("node conv1:\n  no INT32 bias."), 1, "error: node conv1: no INT32 bias."),
        (ConfigError("fdda needs images."), 1, "error: fdda needs images."),
        (FddaDeployError("a"), 1, "error: a"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "error: No space left on device. Free some",
        ),
        (PermissionError(13, "Permission denied", "a.pth"), 1, "error: a.pth: Permission denied."),
        (MemoryError(), 1, "error: out of memory. Lower --batch-size, or close other programs; "),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            1,
            "error: out of memory. Lower --batch-size",
        ),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 1, "error: out of memory."),
        (KeyboardInterrupt(), 130, INTERRUPTED),
    ],
)
def test_a_failure_is_one_line_on_stderr(
    road: Road, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    road.act = fail_with(error)
    assert main(["build", "digits"]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_bug_keeps_its_traceback(road: Road) -> None:
    road.act = fail_with(ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        main(["build", "digits"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("biuld digits", "No such command 'biuld'. Did you mean 'build'?"),
        (
            "build digits --bit 4",
            "No such option: --bit. Did you mean '--bits'? (see fdda-deploy build --help)",
        ),
        (
            "build digits --calib-date x",
            "No such option: --calib-date. Did you mean '--calib-data'?",
        ),
        (
            "build digits --no-finetun",
            "No such option: --no-finetun. Did you mean '--no-finetune'?",
        ),
        ("cache shwo a.cache", "No such command 'shwo'. Did you mean 'show'?"),
        ("--versoin", "No such option: --versoin. Did you mean '--version'?"),
        ("build digits --effort norml", "--effort: unknown 'norml'. Did you mean 'normal'? Known:"),
        ("build digits --target rxt", "--target: unknown 'rxt'. Did you mean 'rtx'? Known: trt,"),
        ("build digits --scheme w8a", "--scheme w8a: want wNaM, for instance w8a8,"),
        ("check a.onnx --fail-on warn", "--fail-on: unknown 'warn'. Did you mean 'warning'?"),
        ("check a.onnx --format srif", "--format: unknown 'srif'. Did you mean 'sarif'?"),
        ("bench a.onnx --provider cdua", "--provider: unknown 'cdua'. Did you mean 'cuda'?"),
        ("bench a.onnx --backend rxt", "--backend: unknown 'rxt'. Did you mean 'rtx'?"),
        (
            "cache export a --format ort-txt --out b",
            "--format: unknown 'ort-txt'. Did you mean 'ort-text'?",
        ),
        (
            "cache apply a b --missing flaot --out c",
            "--missing: unknown 'flaot'. Did you mean 'float'",
        ),
        ("build digits --bits four", "Invalid value for '--bits'"),
        ("build digits resnet18", "Got unexpected extra argument(s) (resnet18)"),
        ("build digits --bits 9", "--bits 9: want 2 to 8."),
        ("build digits --recipe fda", "--recipe: unknown 'fda'. Did you mean 'fdda'?"),
        ("build digits --bits 4 --scheme w8a8", "--bits (4) and --scheme (8) name different"),
        ("build", "no model named: give MODEL on the command line"),
        ("build digits --tune-data t/", "--tune-data t/: only --max-drop uses it, which is not"),
        (
            "check a.onnx --target tensorrt",
            "--target: unknown 'tensorrt'. Did you mean 'trt'? Known: trt,",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    road: Road, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    assert main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert road.config is None


def test_a_wrong_config_file_is_bad_input_and_a_wrong_flag_bad_usage(
    road: Road, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[run]\nsede = 1\n")
    assert main(["build", "digits", "--config", str(file)]) == 1
    assert f"{file}: [run] sede: unknown key. Did you mean 'seed'?" in capsys.readouterr().err
    file.write_text("[run]\nseed = 1\n")
    assert main(["build", "digits", "--config", str(file), "--seed", "-1"]) == 2
    assert main(["build", "--config", str(file)]) == 2
