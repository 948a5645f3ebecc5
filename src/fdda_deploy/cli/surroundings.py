"""What is here: the networks that can be named, and the libraries and backends that work."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from typing import Annotated

import typer

from fdda_deploy.cli.results import print_json, print_table

app = typer.Typer()

DISTRIBUTIONS = (
    "fdda-deploy",
    "torch",
    "torchvision",
    "numpy",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "tensorrt-rtx-cu13-libs",
    "cuda-bindings",
    "pycuda",
    "timm",
)
"""Whose versions decide what works here, by their names on PyPI."""

AsJson = Annotated[bool, typer.Option("--json", help="The same as JSON on stdout.")]


@app.command()
def models(*, as_json: AsJson = False) -> None:
    """List the networks that can be named, and the forms for your own."""
    from fdda_deploy.pipeline.models import list_models

    entries = list_models()
    if as_json:
        print_json([dataclasses.asdict(entry) for entry in entries])
    else:
        print_table([(entry.name, entry.kind, entry.note) for entry in entries])


@app.command()
def doctor(*, as_json: AsJson = False) -> None:
    """Show versions, the GPU, and which backends work, with the install line where one does not."""
    from fdda_deploy.engines.doctor import backend_reports
    from fdda_deploy.engines.gpu import gpu_name

    versions, gpu, backends = _versions(), gpu_name(), backend_reports()
    if as_json:
        reports = [dataclasses.asdict(backend) for backend in backends]
        print_json({"versions": versions, "gpu": gpu, "backends": reports})
        return
    print_table((name, version or "not installed") for name, version in versions.items())
    print_table([("",), ("GPU", gpu or "none, so GPU latency is not measured")])
    for backend in backends:
        can = [("builds plans", backend.can_build), ("runs graphs", backend.can_run)]
        does = ", ".join(what for what, possible in can if possible) or "does not work here"
        title = " ".join(filter(None, (backend.name, backend.version)))
        print_table([("",), (f"{title}: {does}",), (f"  {backend.detail}",)])
        if backend.install:
            print_table([(f"  install: {backend.install}",)])


def _versions() -> dict[str, str | None]:
    """Returns the version of each distribution, None where it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
