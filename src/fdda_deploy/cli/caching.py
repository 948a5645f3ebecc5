"""`fdda-deploy cache`: calibration tables of any tool shown, moved, compared, and put to use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fdda_deploy.cli.cache_rows import (
    applied,
    applied_rows,
    cell,
    head,
    head_rows,
    note,
    tensor_rows,
)
from fdda_deploy.cli.options import UsageFaultError, completing, require_one_of
from fdda_deploy.cli.results import print_json, print_table
from fdda_deploy.cli.stages import examples
from fdda_deploy.config.engine import TARGETS

if TYPE_CHECKING:
    from fdda_deploy.calib_cache.record import CalibrationRecord

app = typer.Typer()
cache = typer.Typer(help="Calibration tables: show, import, export, compare, apply to a graph.")
app.add_typer(cache, name="cache")

WRITTEN = ("trt", "ort", "ort-text", "json")
MISSING = ("error", "float")
"""`calib_cache.formats.WRITTEN` and `exporters.table_to_qdq.MISSING`, known without numpy."""

TableFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="TensorRT's table, ONNX Runtime's (flatbuffer, text, JSON), a JSON table, or "
        "calibration.json; the content tells which.",
        show_default=False,
    ),
]
OutFile = Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.")]
Inverted = Annotated[
    bool, typer.Option("--inverted", help="The table holds 127/amax: take the reciprocals.")
]
AsJson = Annotated[bool, typer.Option("--json", help="The same as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing.")]


@cache.command(epilog=examples("cache show calibration.cache", "cache show table.json --json"))
def show(file: TableFile, *, inverted: Inverted = False, as_json: AsJson = False) -> None:
    """Show what a calibration table holds, and where it comes from."""
    form, record = _load(file, inverted)
    rows, remark = tensor_rows(record), note(form, record)
    if as_json:
        result = {"file": str(file), **head(form, record), "tensors": rows, "note": remark}
        print_json(result)
        return
    print_table(head_rows(file, form, record))
    columns = ("tensor", "role", "scale", "amax", "qmin", "qmax", "zero_point")
    print_table([columns, *(tuple(cell(row[column]) for column in columns) for row in rows)])
    if remark:
        print_table([(remark,)])


@cache.command("import", epilog=examples("cache import old.cache --out calibration.json"))
def import_table(
    file: TableFile,
    *,
    out: OutFile,
    inverted: Inverted = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Read any table into a calibration record, bit for bit, with its origin."""
    from fdda_deploy.calib_cache.store import save_record

    form, record = _load(file, inverted)
    save_record(out, record)
    _say({"out": str(out), **head(form, record)}, head_rows(out, form, record), as_json, quiet)


@cache.command(
    epilog=examples(
        "cache export calibration.json --format trt --trt-version 10.16.1 --out calibration.cache",
        "cache export calibration.json --format ort --out calibration.flatbuffers",
    )
)
def export(
    file: TableFile,
    *,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help=f"{', '.join(WRITTEN)}.",
            autocompletion=completing(WRITTEN),
        ),
    ],
    out: OutFile,
    trt_version: Annotated[
        str,
        typer.Option(metavar="X.Y.Z", help="Release in TensorRT's header; default the origin's."),
    ] = "",
    algorithm: Annotated[
        str, typer.Option(metavar="NAME", help="Calibrator in the header; default the origin's.")
    ] = "",
    inverted: Inverted = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the activations of a record or of any table in another tool's format."""
    from fdda_deploy.calib_cache import formats
    from fdda_deploy.calib_cache.store import atomic_write_bytes

    require_one_of("--format", form, WRITTEN)
    if form != "trt" and (trt_version or algorithm):
        raise UsageFaultError("--trt-version and --algorithm go with --format trt alone.")
    digits = formats.version_digits_of(trt_version) if trt_version else ""
    _, record = _load(file, inverted)
    atomic_write_bytes(out, formats.write(record, form, digits, algorithm))
    written = {"out": str(out), "format": form, "tensors": len(tensor_rows(record))}
    rows = [("written", f"{out}: {formats.FORMATS[form]}")]
    _say(written, rows, as_json, quiet)


@cache.command(epilog=examples("cache diff old.cache new.cache --tolerance 0.01"))
def diff(
    first: TableFile,
    second: TableFile,
    *,
    tolerance: Annotated[
        float,
        typer.Option(min=0.0, metavar="X", help="Ratios up to 1 + X are the same; default exact."),
    ] = 0.0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare two tables; exit code 1 where they differ by more than the tolerance."""
    from fdda_deploy.calib_cache.difference import compare

    if not math.isfinite(tolerance):
        raise UsageFaultError(f"--tolerance {tolerance}: want a finite number, for instance 0.01.")
    found = compare(_load(first, False)[1], _load(second, False)[1], tolerance)
    changed = [
        {"tensor": entry.tensor, "ratio": entry.ratio, "reason": entry.reason}
        for entry in found.changed
    ]
    result = {
        "same": found.same,
        "common": found.common,
        "only_first": list(found.only_first),
        "only_second": list(found.only_second),
        "changed": changed,
    }
    rows: list[tuple[str, ...]]
    rows = [(name, "only in", str(first)) for name in found.only_first]
    rows += [(name, "only in", str(second)) for name in found.only_second]
    rows += [(entry.tensor, entry.reason, cell(entry.ratio)) for entry in found.changed]
    differ = len(found.changed)
    rows.append((f"{found.common} tensors in both, {differ} of them differ",))
    _say(result, rows, as_json, quiet)
    if not found.same:
        raise typer.Exit(1)


@cache.command(
    epilog=examples(
        "cache apply calibration.cache model.onnx --out model.qdq.onnx",
        "cache apply old.cache model.onnx --out model.qdq.onnx --target rtx --missing float",
    )
)
def apply(
    file: TableFile,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL.onnx", help="The float network that was calibrated.")
    ],
    *,
    out: OutFile,
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"Whose placement table: {', '.join(TARGETS)}.",
            autocompletion=completing(TARGETS),
        ),
    ] = "trt",
    missing: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Layers whose input the table lacks: error, or leave them float.",
            autocompletion=completing(MISSING),
        ),
    ] = "error",
    inverted: Inverted = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Turn a table and its float network into a Q/DQ graph, which TensorRT 11 reads."""
    from fdda_deploy.calib_cache.store import atomic_write_bytes, load_any
    from fdda_deploy.exporters.onnx_file import read_onnx
    from fdda_deploy.exporters.table_to_qdq import apply_table

    require_one_of("--target", target, TARGETS)
    require_one_of("--missing", missing, MISSING)
    form, record = load_any(file)
    found = apply_table(record, read_onnx(model), target, missing=missing, inverted=inverted)
    atomic_write_bytes(out, found.model.SerializeToString())
    _say(applied(out, form, record, found), applied_rows(out, found), as_json, quiet)


def _load(file: Path, inverted: bool) -> tuple[str, CalibrationRecord]:
    """Returns a table that is the right way round, and its format."""
    from fdda_deploy.calib_cache.inversion import activation_scales, reciprocal, refuse_inverted
    from fdda_deploy.calib_cache.store import load_any

    form, record = load_any(file)
    if inverted:
        return form, reciprocal(record)
    if record.origin:  # our own records are right by construction
        refuse_inverted(activation_scales(record))
    return form, record


def _say(result: dict[str, Any], rows: Iterable[Sequence[str]], as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json(result)
    elif not quiet:
        print_table(rows)
