"""The page docs/engine_table.md from the rows of engine_table.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = """# Engines that TensorRT-RTX builds on the CPU

Written by `python benchmarks/engine_table.py` from `benchmarks/results/engine_table.json`; do not
edit. Builder: {builder}. Machine: {machine}, busy with other work.

Ranges come from two random images and weights are rounded to the nearest step of their largest
value, so this table says what builds, how large it is, and that the file computes what the network
computes; it says nothing about accuracy. No plan was run: that takes a GPU, and latency is
**not measured** here. Placement is what `--target rtx` does by default: depthwise convolutions stay
in float, w8a8 is a compact plan ([one scale per weight, float where INT8 would cost more bytes than
it saves](engine_build.md)), and zero-points go into biases where these can take them. A build first
equalises channels, so that one scale fits them; here that is left out, and `L2` of w8a8 shows it.
T020 names the skips that a compact plan leaves in float.

- `export`: CPU seconds of one thread from the network to the finished file, calibration left out.
- `peak`: largest resident memory of the process meanwhile, torch and calibration included; rows
  further down include what the rows before them left in memory.
- `ratio`: plan bytes against the fp32 plan of the same network.
- `quantized`: weights stored as integers or FP8, of all weighted layers.
- `L2`: relative distance of ONNX Runtime's logits from the float network's. Its CPU provider
  computes FP16 nodes in FP32 and keeps what is between them in FP32 too: in FP16 rows `L2` is a
  lower bound of what FP16 costs.
- `+fp16`: what is not quantized computes in FP16 (`--float-type fp16`); without it in FP32, but in
  w4a16, which has FP16 anyway. `islands`: nodes that keep FP32 all the same.
"""
_COLUMNS = (
    "precision",
    "builds",
    "export CPU s",
    "peak MiB",
    "plan MB",
    "ratio",
    "build s",
    "quantized",
    "islands",
    "L2",
    "errors",
    "warnings",
)


def page(document: Mapping[str, Any]) -> str:
    """Returns the page of all rows, one table a network, the builder's words below."""
    rows: list[dict[str, Any]] = document["rows"]
    parts = [HEAD.format(builder=document["builder"], machine=document["machine"])]
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        parts.append(f"## {name}, {next(r['weights'] for r in own if 'weights' in r)}\n")
        parts.append(_table(own))
        refused = [f"- {row['precision']}: {row['words']}" for row in own if not row["builds"]]
        if refused:
            parts.append("The builder's words:\n\n" + "\n".join(refused) + "\n")
    parts.append(_summary(rows))
    return "\n".join(parts)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    float_bytes = next((row.get("plan_bytes") for row in rows if row["precision"] == "fp32"), None)
    lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
    lines += [_line(_cells(row, float_bytes)) for row in rows]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any], float_bytes: int | None) -> list[str]:
    if "export_cpu_seconds" not in row:
        return [row["precision"], "no", *["-"] * (len(_COLUMNS) - 2)]
    plan = row.get("plan_bytes")
    layers = row["weights_quantized"] + row["left_float"]
    warnings = ", ".join(f"{rule} {count}" for rule, count in sorted(row["findings"].items()))
    return [
        row["precision"],
        "yes" if row["builds"] else "no",
        f"{row['export_cpu_seconds']:.1f}",
        f"{row['export_peak_mib']:.0f}",
        "-" if plan is None else f"{plan / 1e6:.2f}",
        "-" if plan is None or float_bytes is None else f"{plan / float_bytes:.2f}",
        f"{row['build_seconds']:.1f}" if row["builds"] else "-",
        f"{row['weights_quantized']} of {layers}",
        str(row["fp32_islands"]),
        f"{row['relative_l2']:.1e}",
        str(len(row["errors"])),
        warnings or "none",
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    built = sum(row["builds"] for row in rows)
    errors = sum(len(row["errors"]) for row in rows if row["builds"])
    return (
        f"## In sum\n\n{built} of {len(rows)} graphs build. Our checker reports {errors} errors on "
        "those that do.\n"
    )
