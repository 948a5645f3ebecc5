"""`check`: TensorRT's rules on a network's Q/DQ graph, or on any ONNX file; `--fix` repairs it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fdda_deploy.api.checking import FILE_TARGETS, FileQuestion
from fdda_deploy.cli.check_file import FAIL_ON, FORMATS, FileRequest, check_file
from fdda_deploy.cli.options import (
    ENGINE,
    Options,
    UsageFaultError,
    one_of,
    option,
    require_one_of,
    takes_options,
)
from fdda_deploy.cli.stages import examples, run_until
from fdda_deploy.config.compact_plan import require_compact_repair
from fdda_deploy.config.engine import TARGETS
from fdda_deploy.errors import ConfigError

app = typer.Typer()

ANY_FILE = "Where MODEL is an ONNX file"


@dataclass(frozen=True)
class CheckOptions(Options):
    """What `check` takes beyond what every command takes."""

    target: Annotated[
        str | None,
        one_of(
            ENGINE,
            tuple(dict.fromkeys((*TARGETS, *FILE_TARGETS))),
            "Whose rules, if not the backend's",
        ),
    ] = None
    fix: Annotated[
        bool, option(ANY_FILE, "Repair what is safe, prove it, write --out.", flag="--fix")
    ] = False
    tolerance: Annotated[
        float | None,
        option(ANY_FILE, "Relative L2 the outputs may move, whatever else they do.", "X"),
    ] = None
    feed: Annotated[
        Path | None, option(ANY_FILE, "Inputs of the proof; default drawn.", "FILE.npz")
    ] = None
    profile: Annotated[
        bool, option(ANY_FILE, "The build has shape profiles.", flag="--profile")
    ] = False
    flag: Annotated[
        list[str] | None, option(ANY_FILE, "Builder flag in use, repeatable.", "NAME")
    ] = None
    output_format: Annotated[
        str | None,
        option(ANY_FILE, f"{', '.join(FORMATS)}.", "NAME", flag="--format", known=FORMATS),
    ] = None
    fail_on: Annotated[
        str | None,
        one_of(ANY_FILE, FAIL_ON, "Exit code 1 from which severity"),
    ] = None


_OF_FILES = {field.name for field in dataclasses.fields(CheckOptions)} - {
    field.name for field in dataclasses.fields(Options)
}
_OF_BOTH = {"model", "target", "sm", "out", "seed", "quiet", "json_output", "compact_plan"}


@app.command(
    epilog=examples(
        "check digits",
        "check model.qdq.onnx --target rtx --sm 89",
        "check theirs.onnx --target trt11 --fix --out fixed.onnx",
        "check model.onnx --format sarif --fail-on warning",
    )
)
@takes_options
def check(options: CheckOptions) -> None:
    """Check the Q/DQ graph, or any ONNX file given as MODEL, against TensorRT's rules.

    Findings about a file go to stdout; the exit code is 1 where one is an error.
    """
    if (options.model or "").lower().endswith(".onnx"):
        check_file(_file_request(options))
        return
    for name in sorted(_OF_FILES):
        if getattr(options, name):
            raise UsageFaultError(
                f"{_flag(name)}: only where MODEL is an ONNX file, FILE.onnx. Leave it away, or "
                "run `fdda-deploy export` and check the file that it writes."
            )
    run_until("check", options)


def _file_request(options: CheckOptions) -> FileRequest:
    """Returns what was asked of a file.

    Raises:
        UsageFaultError: Options that are wrong, or that only a network has.
    """
    for field in dataclasses.fields(Options):
        if field.name not in _OF_BOTH and getattr(options, field.name) not in {None, False}:
            raise UsageFaultError(
                f"{_flag(field.name)}: has no meaning for an ONNX file. Leave it away."
            )
    require_one_of("--target", options.target, FILE_TARGETS)
    chosen = _format(options)
    fail_on = options.fail_on or "error"
    require_one_of("--fail-on", fail_on, FAIL_ON)
    _require_whole_fix(options)
    target = options.target or "trt"
    try:
        require_compact_repair(options.compact_plan, target, fix=options.fix)
    except ConfigError as error:
        raise UsageFaultError(str(error)) from None
    plain = Options(model=options.model, sm=options.sm, seed=options.seed).build_config()
    question = FileQuestion(
        path=Path(options.model or ""),
        target=target,
        compute_capabilities=plain.engine.sm,
        profiles_given=options.profile,
        flags=tuple(options.flag or ()),
        fixed=Path(options.out) if options.fix and options.out else None,
        feed=options.feed,
        tolerance=options.tolerance,
        seed=options.seed or 0,
        compact_plan=options.compact_plan,
    )
    return FileRequest(question, chosen, options.quiet, fail_on)


def _format(options: CheckOptions) -> str:
    if options.output_format is None:
        return "json" if options.json_output else "text"
    require_one_of("--format", options.output_format, FORMATS)
    if options.json_output and options.output_format != "json":
        raise UsageFaultError(f"--json and --format {options.output_format}: want one of the two.")
    return options.output_format


def _require_whole_fix(options: CheckOptions) -> None:
    """Refuses a repair without a place for its result, and options of a repair without one."""
    if options.fix and not options.out:
        raise UsageFaultError("--fix: give --out FIXED.onnx too; MODEL is never overwritten.")
    if options.fix and Path(options.out or "").resolve() == Path(options.model or "").resolve():
        raise UsageFaultError("--out is MODEL itself, which is never overwritten. Name another.")
    alone = [n for n in ("out", "feed", "tolerance") if getattr(options, n) is not None]
    if alone and not options.fix:
        raise UsageFaultError(f"{_flag(alone[0])}: goes with --fix. Add --fix, or leave it away.")


def _flag(name: str) -> str:
    return {"output_format": "--format"}.get(name, f"--{name.replace('_', '-')}")
