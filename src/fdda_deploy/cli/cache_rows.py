"""What `fdda-deploy cache` prints: rows for people and the same as JSON values."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdda_deploy.calib_cache.record import CalibrationRecord
    from fdda_deploy.exporters.table_to_qdq import Applied

NOT_PORTABLE = (
    "Tables are not portable across TensorRT releases: another release names other tensors. "
    "`fdda-deploy cache apply` carries the scales over into a Q/DQ graph."
)


def head(form: str, record: CalibrationRecord) -> dict[str, Any]:
    """Returns where a calibration comes from and how many tensors it has, for JSON."""
    return {
        "format": form,
        "origin": record.origin,
        "algorithm": record.algorithm,
        "num_tensors": len(record.tensors) + len(record.unexcited),
        "num_unexcited": len(record.unexcited),
    }


def head_rows(file: Path, form: str, record: CalibrationRecord) -> list[tuple[str, str]]:
    """Returns the same as rows of a table."""
    from fdda_deploy.calib_cache.formats import FORMATS

    idle = f", {len(record.unexcited)} never excited" if record.unexcited else ""
    return [
        ("file", str(file)),
        ("format", FORMATS[form]),
        ("origin", record.origin or f"fdda-deploy {record.tool_version}"),
        ("algorithm", record.algorithm or "not known"),
        ("tensors", f"{len(record.tensors) + len(record.unexcited)}{idle}"),
    ]


def tensor_rows(record: CalibrationRecord) -> list[dict[str, Any]]:
    """Returns one row per tensor; of several scales the largest, with their number."""
    rows: list[dict[str, Any]] = []
    for name, tensor in record.tensors.items():
        grid = tensor.qparams
        amax = max(tensor.amax) if isinstance(tensor.amax, tuple) else tensor.amax
        scale = float(grid.scale.max())
        rows.append(
            {
                "tensor": name,
                "role": tensor.role,
                "scale": scale,
                "scale_hex": struct.pack(">f", scale).hex(),
                "num_scales": int(grid.scale.size),
                "amax": amax,
                "qmin": grid.qmin,
                "qmax": grid.qmax,
                "zero_point": grid.zero_point,
            }
        )
    for name, scale in record.unexcited.items():
        row = {"tensor": name, "role": "never excited", "scale": scale, "num_scales": 1}
        row["scale_hex"] = struct.pack(">f", scale).hex()
        rows.append({**row, **dict.fromkeys(("amax", "qmin", "qmax", "zero_point"))})
    return rows


def note(form: str, record: CalibrationRecord) -> str:
    """Returns what somebody who sees TensorRT's table has to know, empty for others."""
    return NOT_PORTABLE if form == "trt" or record.origin.startswith("TRT-") else ""


def applied(out: Path, form: str, record: CalibrationRecord, found: Applied) -> dict[str, Any]:
    """Returns how a table was used, for JSON."""
    return {
        "out": str(out),
        "target": found.placement.target,
        **head(form, record),
        "activations": dict(found.taken),
        "weights": [point.initializer for point in found.placement.weights],
        "left_float": dict(found.placement.left_float),
        "missing": list(found.missing),
        "unknown": list(found.unknown),
    }


def applied_rows(out: Path, found: Applied) -> list[tuple[str, ...]]:
    """Returns the same as rows of a table."""
    rows: list[tuple[str, ...]] = [
        ("written", str(out)),
        ("activations", f"{len(found.taken)} pairs with the table's scales"),
        ("weights", f"{len(found.placement.weights)} in INT8, amax/127 per output channel"),
    ]
    rows += [("in float", f"{node}: {why}") for node, why in found.placement.left_float]
    rows += [("not in table", name) for name in found.missing]
    if found.unknown:
        rows.append(("not in graph", ", ".join(found.unknown)))
    return rows


def cell(value: object) -> str:
    """Returns a number in six digits, a dash for nothing."""
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
