"""Repairs what is safe in anybody's Q/DQ graph, so that TensorRT takes it and runs it as meant.

`repair` applies the table below in order and says what it changed. It proves nothing: whether the
outputs stayed where they were is measured by `pipeline.repairing`, which may run graphs.
"""

from __future__ import annotations

from collections.abc import Collection, Container
from dataclasses import dataclass, field

import onnx

from fdda_deploy.errors import CalibrationError, ExportError
from fdda_deploy.exporters.repair import (
    activations,
    axes,
    biases,
    domains,
    duplicates,
    float_readers,
    float_weights,
    integer_weights,
    narrow_filters,
    one_scale,
    qoperators,
    residuals,
    shared_scales,
    unpaid_layers,
    useless_pairs,
    versions,
)
from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.notes import Notes
from fdda_deploy.exporters.repair.record import Applied, Repair
from fdda_deploy.exporters.rules.graph import Request
from fdda_deploy.exporters.trt_rules import known_target

REPAIRS: tuple[Repair, ...] = (
    versions.REPAIR,
    domains.REPAIR,
    qoperators.REPAIR,
    axes.REPAIR,
    biases.REPAIR,
    float_weights.REPAIR,
    integer_weights.REPAIR,
    duplicates.REPAIR,
    residuals.REPAIR,
    narrow_filters.REPAIR,
    float_readers.REPAIR,
    unpaid_layers.REPAIR,
    one_scale.REPAIR,
    useless_pairs.REPAIR,
    activations.REPAIR,
    shared_scales.REPAIR,
)
"""The table, in the order of application: later repairs rely on what earlier ones settled."""

RESTORING = frozenset(entry.id for entry in REPAIRS if entry.restores)
"""What lets other readers load a file at all: opset, IR, axes."""

NOTATION = RESTORING | {domains.REPAIR.id, qoperators.REPAIR.id}
"""What writes the same grids and operators another way: as Q/DQ pairs of ONNX's own domain."""


@dataclass(frozen=True)
class Repaired:
    """A repaired model and what was done to it.

    Attributes:
        model: A new model; the one that was given is as it was.
        applied: Every change, in order; empty where there was nothing that is safe to repair.
        notes: Which tensors were moved or scaled on the way, for the proof.
    """

    model: onnx.ModelProto
    applied: tuple[Applied, ...]
    notes: Notes = field(default_factory=Notes)

    @property
    def exact(self) -> bool:
        """Whether all changes together leave the numbers as they were, to float rounding."""
        return all(change.exact for change in self.applied)


def repair(
    model: onnx.ModelProto,
    *,
    target: str = "rtx",
    compute_capabilities: tuple[int, ...] = (),
    only: Container[str] | None = None,
    compact_plan: bool = False,
    bounded: Collection[str] = (),
) -> Repaired:
    """Returns ``model`` with everything repaired that is safe, and a list of the changes.

    Args:
        model: Any ONNX model with its weights; left as it is.
        target: ``rtx``, ``trt11`` (also ``trt``) or ``trt10.16``.
        compute_capabilities: GPUs that the plan is for, for instance (86, 89); empty if unknown.
        only: Apply only the repairs with these ids, for instance `RESTORING`; None applies all.
        compact_plan: Apply those too that make TensorRT-RTX's plan smaller; nothing elsewhere.
        bounded: With ``compact_plan``, tensors that quantizing cuts off at INT8's lowest value;
            their pairs stay.

    Raises:
        ExportError: Unknown target, a model that is not sound ONNX, or one whose nodes form a
            circle.
    """
    request = Request(known_target(target), tuple(compute_capabilities))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = GraphEdit(copy)
    graph.notes.bounded = frozenset(bounded)
    applied: list[Applied] = []
    for entry in REPAIRS:
        if (only is not None and entry.id not in only) or (entry.compact and not compact_plan):
            continue
        try:
            applied += entry.run(graph, request)
            if entry is versions.REPAIR:  # below its opset's floor a graph is not sound yet
                _require_sound(graph.model)
        except CalibrationError as error:  # a grid outside float32's normal numbers
            raise ExportError(f"{entry.id} cannot repair this graph: {error}") from error
    result = graph.finish()
    if applied:
        _drop_domains(result)
    return Repaired(result, tuple(applied), graph.notes)


def _require_sound(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ExportError(
            f"the ONNX model is not sound, so nothing in it is repaired: {reason}. Export it again."
        ) from error
    idle = [node for node in model.graph.node if not any(node.output)]
    if idle:  # which the checker lets pass
        raise ExportError(
            f"{idle[0].name or idle[0].op_type} has no output, so nothing in the ONNX model is "
            "repaired. Export it again."
        )


def _drop_domains(model: onnx.ModelProto) -> None:
    """Takes out the imports of domains that no node needs; quantizers leave many behind."""
    used = {"", "ai.onnx", *(node.domain for node in model.graph.node)}
    for index in reversed(range(len(model.opset_import))):
        if model.opset_import[index].domain not in used and not model.functions:
            del model.opset_import[index]
