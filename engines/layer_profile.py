"""Time per layer joined to its precision, so that what quantization left behind shows by name.

``trtexec --exportProfile`` writes a list: first an object with the number of runs, then one per
layer with its name, summed, mean and median time and share. The names are those of the inspector
(`layer_info`), which says what each layer computes in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fdda_deploy.engines.layer_info import EngineLayer
from fdda_deploy.errors import EngineError

ADVICE = "Write it with trtexec --exportProfile=FILE."
QDQ_NAME = re.compile(r"(de)?quantize_?linear|(de)?quantize_scale|\b(de)?quantize\b", re.IGNORECASE)
REFORMAT_NAME = re.compile(r"\breformat|^reformatt", re.IGNORECASE)
COMPUTE = re.compile(r"conv|gemm|matmul|matrix_?mul|fully_?connected|fprop", re.IGNORECASE)
FLOAT = ("FP32", "TF32")
FUSED = re.compile(r" \+ |[+|]")


@dataclass(frozen=True)
class LayerTime:
    """One layer's time per run.

    Attributes:
        name: Of the engine.
        mean_ms: Mean over the runs.
        median_ms: Median over the runs; None where the file has none.
        percent: Share of the sum over all layers, 0 to 100.
        precision: ``INT8``, ``FP16`` ...; None where the engine kept names alone or the layer is
            not in the inspector's list.
        finding: ``unfused Q/DQ``, ``reformat``, ``float`` (a product left in 32 bits), or None.
    """

    name: str
    mean_ms: float
    median_ms: float | None
    percent: float
    precision: str | None
    finding: str | None


def profile_from_json(
    document: object, where: str, layers: Sequence[EngineLayer] = ()
) -> tuple[LayerTime, ...]:
    """Returns the layers of a profile in their order, with what the inspector knows of them.

    Args:
        document: What ``json.loads`` gave of ``trtexec --exportProfile``.
        where: What messages call it.
        layers: Of the same engine (`layer_info.layers_from_json`).

    Raises:
        EngineError: Another schema, no layer, or a time that is none; names the layer.
    """
    if not isinstance(document, list):
        raise EngineError(f"{where}: no list, want one object per layer. {ADVICE}")
    rows = [row for row in document if not (isinstance(row, dict) and set(row) == {"count"})]
    if not rows:
        raise EngineError(f"{where}: no layer in it. {ADVICE}")
    known = {layer.name: layer for layer in layers}
    times = [_times(row, f"{where}: layer {index}") for index, row in enumerate(rows)]
    total = sum(mean for _, mean, _ in times)
    found = []
    for name, mean, median in times:
        layer = known.get(name, EngineLayer(name, None))
        percent = 100 * mean / total if total else 0.0
        found.append(LayerTime(name, mean, median, percent, layer.precision, finding_of(layer)))
    return tuple(found)


def finding_of(layer: EngineLayer) -> str | None:
    """Returns what is wrong with a layer of a quantized engine, None where nothing is.

    A Q or DQ that stands alone was not fused into the product before or behind it; a reformat moves
    data between layouts or types that its neighbours disagree on; a product in 32 bits was not
    quantized at all.
    """
    kind = layer.kind or ""
    if REFORMAT_NAME.search(kind) or REFORMAT_NAME.search(layer.name):
        return "reformat"
    parts = [part.strip() for part in FUSED.split(layer.name) if part.strip()]
    alone = all(QDQ_NAME.search(part) for part in parts) and not COMPUTE.search(kind)
    if QDQ_NAME.search(kind) or (parts and alone):
        return "unfused Q/DQ"
    product = COMPUTE.search(kind) or COMPUTE.search(layer.tactic or "")
    if product and layer.precision in FLOAT:
        return "float"
    return None


def milliseconds_by_precision(profile: Sequence[LayerTime]) -> dict[str, float]:
    """Returns the mean time per run by precision, the most first; ``unknown`` for None."""
    sums: dict[str, float] = {}
    for row in profile:
        key = row.precision or "unknown"
        sums[key] = sums.get(key, 0.0) + row.mean_ms
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def _times(row: object, where: str) -> tuple[str, float, float | None]:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        raise EngineError(f"{where} has no name. {ADVICE}")
    name = str(row["name"])
    mean = _milliseconds(row.get("averageMs"))
    if mean is None:
        raise EngineError(f"{where}, {name}: averageMs is no time, want 0 or more ms. {ADVICE}")
    return name, mean, _milliseconds(row.get("medianMs"))


def _milliseconds(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if 0 <= value < 1e15 else None
