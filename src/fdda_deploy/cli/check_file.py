"""TensorRT's rules on any ONNX file, whoever wrote it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import typer

from fdda_deploy.cli.options import Options
from fdda_deploy.cli.results import print_json, print_table
from fdda_deploy.errors import ExportError


def check_file(options: Options) -> None:
    """Prints what breaks a rule; exit code 1 when an error is among it.

    Raises:
        ExportError: The file is missing or is no ONNX graph.
    """
    engine = options.build_config().engine
    path = Path(options.model or "")
    model = _read(path)
    from fdda_deploy.exporters.trt_rules import check

    findings = check(model, target=engine.target or "trt", compute_capabilities=engine.sm)
    rows = [dataclasses.asdict(finding) for finding in findings]
    errors = sum(str(row["severity"]) == "error" for row in rows)
    if options.json_output:
        print_json({"file": str(path), "errors": errors, "findings": rows})
    elif not options.quiet:
        for row in rows:
            place = " ".join(str(row[key]) for key in ("node", "tensor", "value") if row[key])
            print_table([(row["rule"], str(row["severity"]), place)])
            print_table([("    ", row["why"]), ("    ", f"Repair: {row['repair']}")])
        print_table([(f"{path}: {len(rows)} findings, {errors} of them errors",)])
    if errors:
        raise typer.Exit(1)


def _read(path: Path) -> Any:
    """Returns the ONNX model in ``path``."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # none shipped

    try:
        model = onnx.load(path)
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}. Want an ONNX file.") from None
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ExportError(
            f"{path}: not a readable ONNX file ({reason}). Export it again."
        ) from None
    if not model.graph.node:
        raise ExportError(f"{path}: no node in its graph. Want an ONNX file with a network.")
    return model
