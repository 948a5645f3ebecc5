"""`refit`: puts weights into a plan that was built with --strip; only a machine with a GPU can."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fdda_deploy.cli.results import print_json, print_table
from fdda_deploy.cli.stages import examples
from fdda_deploy.cli.surroundings import AsJson
from fdda_deploy.durable import write_whole
from fdda_deploy.errors import WorkspaceError

app = typer.Typer()

Quiet = Annotated[bool, typer.Option("--quiet", help="No table.")]


@app.command(epilog=examples("refit engine.plan model.qdq.onnx --out whole.plan"))
def refit(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="Built with --strip.")],
    onnx: Annotated[
        Path,
        typer.Argument(
            metavar="ONNX", help="The graph it was built from, or one with other weights."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the whole plan goes.")],
    *,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Put the weights of an ONNX file into a stripped plan; needs the GPU that will run it."""
    from fdda_deploy.engines.onnx_gate import load_onnx
    from fdda_deploy.engines.plan_header import load_plan, read_header
    from fdda_deploy.engines.refit import refit_plan
    from fdda_deploy.engines.trt_api import load_api

    stripped = load_plan(plan)
    header = read_header(stripped, str(plan))
    whole = refit_plan(stripped, load_onnx(onnx), load_api(header.flavour))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, whole)
    except (OSError, ValueError) as error:
        raise WorkspaceError(f"{out}: cannot be written ({error}). Give another --out.") from error
    if as_json:
        print_json({"out": str(out), "release": header.release, "plan_bytes": len(whole)})
    elif not quiet:
        print_table([("plan", str(out)), ("bytes", f"{len(stripped):,} to {len(whole):,}")])
