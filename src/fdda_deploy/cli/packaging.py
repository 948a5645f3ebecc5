"""From a finished build to a folder to deploy, and whether such a folder works on a machine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fdda_deploy.cli.options import UsageFaultError
from fdda_deploy.cli.results import print_json, print_table
from fdda_deploy.cli.stages import examples
from fdda_deploy.cli.surroundings import AsJson
from fdda_deploy.errors import ConfigError, EngineError

app = typer.Typer()

Quiet = Annotated[bool, typer.Option("--quiet", help="No table.")]


@app.command(
    epilog=examples(
        "package out/digits-w4a8 --out deploy/digits",
        "package out/digits-w4a8 --out deploy/digits --no-plan --triton-name digits",
    )
)
def package(
    result: Annotated[Path, typer.Argument(metavar="RESULT", help="Result folder of a build.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the package goes.")],
    *,
    plan: Annotated[bool, typer.Option(help="The plan, if the build made one.")] = True,
    onnx: Annotated[bool, typer.Option(help="The graph, to run or to build from there.")] = True,
    triton_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Triton's name of the network.")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(metavar="N", help="Largest batch; default the plan's.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a package that is there.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a folder to deploy: plan, graph, manifest, Triton repository, torch-free scripts."""
    from fdda_deploy.engines.package import PackageOptions, write_package

    options = PackageOptions(plan, onnx, triton_name, max_batch, force)
    try:
        manifest = write_package(result, out, options)
    except ConfigError as error:
        raise UsageFaultError(str(error)) from None
    if as_json:
        print_json({"out": str(out), "manifest": manifest})
    elif not quiet:
        print_table(_rows(out, manifest))


@app.command(epilog=examples("verify deploy/digits", "verify deploy/digits --json"))
def verify(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A package.")],
    *,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Say in one line whether a package loads on this machine; exit code 0 if it does, else 1."""
    from fdda_deploy.engines.verify import Verification, verify_package

    try:
        found = verify_package(folder)
    except EngineError as error:
        if not as_json:
            raise
        found = Verification(False, str(error))
    if as_json:
        print_json({"folder": str(folder), **_finite(dataclasses.asdict(found))})
    elif not quiet:
        print_table([(f"{folder}: {'loads' if found.loads else 'does not load'}: {found.reason}",)])
        for probe in found.probes:
            passed = "as when it was packaged" if probe.passed else "WRONG"
            print_table(
                [(f"self-test: {passed}, relative L2 {probe.relative_l2:.2g}, {probe.runs_on}",)]
            )
    if not found.loads:
        raise typer.Exit(1)


def _rows(out: Path, manifest: Mapping[str, Any]) -> list[tuple[str, ...]]:
    plan, graph, triton = manifest["plan"], manifest["graph"], manifest["triton"]
    accuracy = manifest["accuracy"]
    measured = accuracy if isinstance(accuracy, str) else _top1(accuracy["quantized"])
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    return [
        ("package in", str(out)),
        ("files", f"{len(manifest['files'])}, {size:,} bytes"),
        ("plan", f"{plan['flavour']} {plan['version']}" if plan else "none: built on the target"),
        ("graph", f"{graph['file']}, opset {graph['opset']}" if graph else "none"),
        ("Triton", f"triton/{triton['name']}, loads the {triton['loads']}" if triton else "none"),
        ("batch", f"{manifest['batch']['min']} to {manifest['batch']['max']}"),
        ("top-1", measured),
        ("check it with", f"fdda-deploy verify {out}"),
    ]


def _top1(part: Mapping[str, Any]) -> str:
    return f"{part['top1']:.2f} % of {part['n']:,} images"


def _finite(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the same with None for a distance that is no number, which JSON cannot say."""
    for probe in found["probes"]:
        if not math.isfinite(probe["relative_l2"]):
            probe["relative_l2"] = None
    return found
