"""One row per weighted layer for the report: widths, precision in words, and how far it drifts."""

from __future__ import annotations

from fdda_deploy.exporters.placement_table import TABLE
from fdda_deploy.pipeline.quantization.layers import LayerError
from fdda_deploy.pipeline.stages.context import RunContext
from fdda_deploy.pipeline.workspace import Json
from fdda_deploy.quant.points import Placement


def layer_rows(context: RunContext, placement: Placement, errors: list[LayerError]) -> list[Json]:
    """Returns one row per weighted layer for the report, in graph order."""
    graph = context.float_graph.proto.graph
    weight_bits = {node: point for point in placement.weights for node in point.consumers}
    act_bits = {
        node: point.num_bits
        for point in placement.activations
        for node, i in point.consumers
        if i == 0
    }
    measured = {error.node: error for error in errors}
    left = dict(placement.left_float)
    rows: list[Json] = []
    for node in graph.node:
        point = weight_bits.get(node.name)
        if point is None and node.name not in left:
            continue
        error = measured.get(node.name)
        weights = None if point is None else point.num_bits
        acts = act_bits.get(node.name)
        rows.append(
            {
                "name": node.name,
                "op": node.op_type,
                "weight_bits": weights,
                "act_bits": acts,
                "precision": _precision(weights, acts, None if point is None else point.storage),
                "weight_sqnr_db": None if error is None else error.weight_sqnr_db,
                "output_sqnr_db": None if error is None else error.output_sqnr_db,
                "reason": left.get(node.name) or TABLE["weighted-weight"].reason,
            }
        )
    return rows


def _precision(weights: int | None, acts: int | None, storage: str | None) -> str:
    """Says in words what a layer runs in."""
    if weights is None:
        return "float"
    if acts is None:
        return f"float, {weights}-bit weights stored as {str(storage).upper()}"
    if storage == "fp8":
        return "FP8 (E4M3)"
    if (weights, acts) == (8, 8):
        return "INT8"
    grids = [
        f"{n}-bit {what} grid" for n, what in ((weights, "weight"), (acts, "activation")) if n < 8
    ]
    return f"INT8 ({', '.join(grids)})"
