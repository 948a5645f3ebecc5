"""R01: an opset and an IR that TensorRT's parser knows.

1. An opset above 25 is pinned to the newest at which an operator of this graph last changed its
   definition (21 or later): every operator then means what it meant.
2. An opset below what a Q/DQ feature of this graph needs is raised to the lowest that will do.
   Where no other operator changed its definition on the way, only the number changes.
3. Otherwise, and below opset 9, ONNX's own converter raises a sound model.
4. The IR becomes the lowest that goes with the opset, 10 at least.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import defs, helper, version_converter

from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.record import Change, Repair
from fdda_deploy.exporters.rules.graph import GraphView, Request
from fdda_deploy.exporters.rules.versions import OPSETS, PARSER_IR, feature_floor

PINNED_OPSET, PINNED_IR = 21, 10
FOREIGN_FLOOR = 13
"""What R02 and R03 make of ONNX Runtime's operators may have scales per channel."""


def pin_versions(model: onnx.ModelProto, request: Request) -> tuple[onnx.ModelProto, list[Change]]:
    """Returns ``model`` at an opset and IR that the parser knows, and what was changed.

    A graph that neither pinning nor ONNX's converter can bring there is returned as it is.
    """
    changes: list[Change] = []
    old = _opset(model)
    new = None if old is None else _wanted(model, old, request)
    if old is not None and new is not None and new != old:
        same = new < old or _defined_alike(model, old, new)
        moved = _pinned(model, new) if same else _raised(model, new)
        if moved is not None:
            model = moved
            changes.append(Change("", "opset_import", f"opset {old} to {new}", True))
    if model.ir_version > PARSER_IR:
        ir = max(PINNED_IR, _lowest_ir(model))
        if ir <= PARSER_IR:
            changes.append(Change("", "ir_version", f"IR {model.ir_version} to {ir}", True))
            model.ir_version = ir
    elif changes:
        model.ir_version = max(model.ir_version, _lowest_ir(model))
    return model, changes


def _lowest_ir(model: onnx.ModelProto) -> int:
    return int(helper.find_min_ir_version_for(_standard(model), ignore_unknown=True))


def _opset(model: onnx.ModelProto) -> int | None:
    found = [entry.version for entry in _standard(model)]
    return max(found) if found else None


def _standard(model: onnx.ModelProto) -> list[onnx.OperatorSetIdProto]:
    return [entry for entry in model.opset_import if entry.domain in {"", "ai.onnx"}]


def _wanted(model: onnx.ModelProto, old: int, request: Request) -> int | None:
    if old > OPSETS[1]:
        changed = [_changed_at(node, old) for node in model.graph.node if not node.domain]
        known = [version for version in changed if version is not None]
        newest = max([PINNED_OPSET, *known])
        return newest if len(known) == len(changed) and newest <= OPSETS[1] else None
    foreign = any(
        node.domain == "com.microsoft" or node.op_type.startswith("QLinear")
        for node in model.graph.node
    )
    floor = max(feature_floor(GraphView(model, request)), FOREIGN_FLOOR if foreign else OPSETS[0])
    if old < OPSETS[0]:
        return max(floor, FOREIGN_FLOOR)
    return floor if floor > old else None


def _changed_at(node: onnx.NodeProto, opset: int) -> int | None:
    """Returns the opset that last changed the operator, None for one that ONNX lacks."""
    newest = min(opset, defs.onnx_opset_version())
    try:
        return int(defs.get_schema(node.op_type, newest).since_version)
    except defs.SchemaError:
        return None


def _defined_alike(model: onnx.ModelProto, old: int, new: int) -> bool:
    """Returns whether every operator but Q and DQ means the same at both opsets."""
    return old >= OPSETS[0] and all(
        _changed_at(node, old) is not None and _changed_at(node, old) == _changed_at(node, new)
        for node in model.graph.node
        if not node.domain and node.op_type not in {"QuantizeLinear", "DequantizeLinear"}
    )


def _pinned(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    for entry in _standard(model):
        entry.version = opset
    return model


def _raised(model: onnx.ModelProto, opset: int) -> onnx.ModelProto | None:
    try:
        onnx.checker.check_model(model)
        return version_converter.convert_version(model, opset)
    except (onnx.checker.ValidationError, RuntimeError, ValueError, TypeError):
        return None  # its operators have no path; T001 and T002 stay and say what to do


def _apply(graph: GraphEdit, request: Request) -> Iterator[Change]:
    model, changes = pin_versions(graph.model, request)
    if model is not graph.model:
        graph.reload(model)
    yield from changes


REPAIR = Repair(
    "R01",
    ("T001", "T002", "T033"),
    "Pin the opset and the IR to what TensorRT reads.",
    "Operators keep their definitions; ONNX's own converter raises old ones.",
    _apply,
    restores=True,
)
