"""How far two files' outputs are apart on one batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fdda_deploy.cli.options import UsageFaultError
from fdda_deploy.cli.results import print_json, print_table
from fdda_deploy.cli.stages import examples

if TYPE_CHECKING:
    from fdda_deploy.engines.compare import Comparison

app = typer.Typer()

First = Annotated[Path, typer.Argument(metavar="A", help="The reference: .onnx, or a plan.")]
Second = Annotated[Path, typer.Argument(metavar="B", help="What is compared with it.")]


@app.command(
    epilog=examples(
        "compare model.fp32.onnx model.qdq.onnx --samples 64",
        "compare model.qdq.onnx engine.plan --feed batch.npz --max-relative-l2 0.01",
    )
)
def compare(
    first: First,
    second: Second,
    *,
    feed: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="One array per input; default random.")
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", help="Rows of a random batch.")] = 16,
    seed: Annotated[int, typer.Option(metavar="N", help="Of a random batch.")] = 0,
    threads: Annotated[int | None, typer.Option(metavar="N", help="CPU threads.")] = None,
    max_relative_l2: Annotated[
        float | None, typer.Option(metavar="X", help="Exit code 1 where an output is further.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON on stdout.")] = False,
) -> None:
    """Run A and B on one batch: error, angle and agreement of every output."""
    if samples < 1:
        raise UsageFaultError(f"--samples {samples}: want 1 or more.")
    if seed < 0:
        raise UsageFaultError(f"--seed {seed}: want 0 or more.")
    if max_relative_l2 is not None and not max_relative_l2 >= 0:
        raise UsageFaultError(f"--max-relative-l2 {max_relative_l2}: want 0 or more.")
    from fdda_deploy.engines.compare import compare as compare_runners
    from fdda_deploy.engines.feeds import load_feed, random_feed
    from fdda_deploy.engines.open_file import OpenOptions, runner_for

    how = OpenOptions(optimizations="none", num_threads=threads)
    with runner_for(first, how) as a, runner_for(second, how) as b:
        arrays = load_feed(feed, a.inputs) if feed else random_feed(a.inputs, samples, seed)
        found = compare_runners(a, b, arrays)
    limit = math.inf if max_relative_l2 is None else max_relative_l2
    far = [name for name, measured in found.items() if measured.relative_l2 > limit]
    if as_json:
        outputs = {name: _finite(measured) for name, measured in found.items()}
        print_json({"a": str(first), "b": str(second), "outputs": outputs, "beyond": far})
    else:
        print_table(_rows(found, far))
    if far:
        raise typer.Exit(1)


def _finite(measured: Comparison) -> dict[str, Any]:
    """Returns the figures of one output; JSON has no infinity."""
    row = dataclasses.asdict(measured)
    return row | {"relative_l2": row["relative_l2"] if math.isfinite(row["relative_l2"]) else None}


def _rows(found: Mapping[str, Comparison], far: Sequence[str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("output", "max error", "relative L2", "cosine", "top-1 agreement")
    ]
    for name, measured in found.items():
        agreement = measured.top1_agreement
        rows.append(
            (
                name,
                f"{measured.max_abs_error:.4g}",
                f"{measured.relative_l2:.4g}" + (" too far" if name in far else ""),
                f"{measured.cosine:.6f}",
                "no classes" if agreement is None else f"{100 * agreement:.2f} %",
            )
        )
    return rows
