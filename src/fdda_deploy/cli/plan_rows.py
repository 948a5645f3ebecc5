"""Rows of the table that ``fdda-deploy engine`` prints: where the plan's bytes go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

SHOWN = 12


def plan_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns the rows for ``plan_bytes.json``: totals, weights by type, the largest layers.

    Args:
        found: The document that the engine stage writes.
    """
    by_type: Counter[str] = Counter()
    for layer in found["layers"]:
        by_type[layer["stored"]] += layer["num_bytes"] or 0
    rows: list[tuple[str, ...]] = [
        ("plan", f"{found['plan_bytes']:,} bytes"),
        ("weights", f"{found['weight_bytes']:,} bytes, found in the plan byte for byte"),
        *((f"  {kind}", f"{size:,} bytes") for kind, size in by_type.most_common() if size),
        ("the rest", f"{found['other_bytes']:,} bytes"),
        (
            "  kernels",
            f"{found['source_bytes']:,} bytes: source of {found['generated_kernels']} kernels",
        ),
    ]
    largest = sorted(found["layers"], key=_taken, reverse=True)[:SHOWN]
    rows += [(layer["node"], _share(layer)) for layer in largest]
    rows += [("warning", text) for text in found["warnings"]]
    return rows


def _taken(layer: Mapping[str, Any]) -> int:
    return int((layer["num_bytes"] or 0) + layer["kernel_bytes"])


def _share(layer: Mapping[str, Any]) -> str:
    kernels = f", and {layer['kernel_bytes']:,} of kernels" if layer["kernel_bytes"] else ""
    if layer["num_bytes"] is None:
        return f"not found, {layer['float_bytes']:,} bytes in float{kernels}"
    weight = f"{layer['num_bytes']:,} bytes of {layer['float_bytes']:,} in float"
    return f"{layer['stored']}, {weight}{kernels}"
