"""One command per stage of the road; each runs the road up to its stage and says what came out."""

from __future__ import annotations

import json

import typer

from fdda_deploy.cli.engine_file import engine_file
from fdda_deploy.cli.options import Options, takes_options
from fdda_deploy.cli.plan_rows import plan_rows
from fdda_deploy.cli.ranking import ranking_rows
from fdda_deploy.cli.results import (
    BuildResult,
    print_build,
    print_json,
    print_table,
    stages_json,
)

app = typer.Typer()


def run_until(stage: str, options: Options) -> None:
    """Runs the road up to ``stage`` and prints the result.

    Raises:
        FddaDeployError: What a stage refused.
    """
    print_build(result_of(stage, options), as_json=options.json_output, quiet=options.quiet)


def result_of(stage: str, options: Options) -> BuildResult:
    """Runs the road up to ``stage`` and returns what it hands back.

    Raises:
        FddaDeployError: What a stage refused.
        Exit: Another rank of a distributed run has the result.
    """
    config = options.build_config()  # before the heavy imports: a wrong flag is told at once
    from rich.console import Console

    from fdda_deploy.pipeline.run import build as run_the_road

    console = Console(stderr=True, quiet=options.quiet)
    result = run_the_road(config, until=stage, console=console)
    if result.follows:  # another process of the same torchrun prints
        raise typer.Exit
    return result


def examples(*lines: str) -> str:
    """Returns the text under ``--help`` that shows a command in use, one example a line."""
    return "\n\n".join(("Examples:", *(f"  fdda-deploy {line}" for line in lines)))


@app.command(
    epilog=examples(
        "build digits --bits 4",
        "build resnet18 --calib-data images/ --eval-data val/ --scheme w8a8",
        "build nets.py:small --weights small.pth --input-size 32 --num-classes 10",
        "build digits --bits 4 --max-drop 0.5",
        "build --config out/digits-w4a8/config.toml",
    )
)
@takes_options
def build(options: Options) -> None:
    """The whole road: from a network to a verified engine and a report."""
    run_until("report", options)


@app.command(epilog=examples("sensitivity digits --bits 4", "sensitivity resnet18 --json"))
@takes_options
def sensitivity(options: Options) -> None:
    """Rank the layers by the damage that each does alone, without labels."""
    folder = result_of("sensitivity", options).out
    found = json.loads((folder / "sensitivity.json").read_text(encoding="utf-8"))
    if options.json_output:
        print_json(found)
    elif not options.quiet:
        print_table(ranking_rows(found))


@app.command(epilog=examples("quantize digits --scheme w4a4"))
@takes_options
def quantize(options: Options) -> None:
    """Find ranges, round weights and fine-tune."""
    run_until("quantize", options)


@app.command(epilog=examples("export digits --bits 4", "export digits --target ort-cpu"))
@takes_options
def export(options: Options) -> None:
    """Write the float and the Q/DQ ONNX files."""
    run_until("export", options)


@app.command(
    epilog=examples(
        "engine digits", "engine digits --sm 86,89", "engine model.onnx --max-batch 256"
    )
)
@takes_options
def engine(options: Options) -> None:
    """Build the engine of a network, or of any ONNX file, and say where its bytes go."""
    if (options.model or "").lower().endswith(".onnx"):
        engine_file(options)
        return
    result = result_of("engine", options)
    path = result.out / "plan_bytes.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if options.json_output:
        print_json(stages_json(result) | {"plan": found})
    elif not options.quiet:
        print_table([*result.lines, *([] if found is None else plan_rows(found))])


@app.command(epilog=examples("evaluate digits", "evaluate resnet18 --eval-data val/"))
@takes_options
def evaluate(options: Options) -> None:
    """Measure accuracy before and after quantization."""
    run_until("evaluate", options)


@app.command(epilog=examples("report digits --json"))
@takes_options
def report(options: Options) -> None:
    """Write report.json and report.html, doing what is not done yet."""
    run_until("report", options)
