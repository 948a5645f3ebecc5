"""Rules on versions and build options: opset, IR, profiles, flags, and what stayed unseen."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from fdda_deploy.exporters.rules.finding import ERROR, NOTE, WARNING, Problem, Rule
from fdda_deploy.exporters.rules.graph import GraphView, Node, type_name

OPSETS = (9, 25)
PARSER_IR = 13
"""IR of the ONNX release that brought opset 25."""
_TYPE_FLOORS = {
    TensorProto.FLOAT8E4M3FN: 19,
    TensorProto.FLOAT8E5M2: 19,
    TensorProto.INT4: 21,
    TensorProto.UINT4: 21,
    TensorProto.FLOAT4E2M1: 23,
}
GONE_FLAGS = {
    "INT8": "put Q/DQ pairs in the graph",
    "FP16": "export the float parts in FP16",
    "BF16": "export the float parts in BF16",
    "FP8": "put FP8 Q/DQ pairs in the graph",
    "INT4": "store INT4 weights in the graph",
    "FP4": "store FP4 weights in the graph",
    "OBEY_PRECISION_CONSTRAINTS": "state each precision in the graph",
    "PREFER_PRECISION_CONSTRAINTS": "state each precision in the graph",
    "EXPLICIT_BATCH": "leave it away: every network is explicit-batch",
    "INT8_CALIBRATOR": "calibrate here and export Q/DQ",
    "DYNAMIC_RANGE": "calibrate here and export Q/DQ",
}
"""Flags of TensorRT 10 that strongly typed builders (11.x and RTX) no longer have."""


def unseen(view: GraphView) -> Iterator[Problem]:
    """T000."""
    repair = "Inspect that part by hand, or ask the builder."
    for node in view.nodes:
        kinds = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
        if any(attribute.type in kinds for attribute in node.proto.attribute):
            yield Problem(node.name, "", f"{node.op_type} has a body of its own", repair)
    if len(view.model.functions):
        yield Problem("", "", f"{len(view.model.functions)} local functions", "Inline them.")
    if view.inference_failure:
        value = f"shapes cannot be inferred: {view.inference_failure[:200]}"
        yield Problem("", "", value, "Repair the graph, then check again.")


def opset_range(view: GraphView) -> Iterator[Problem]:
    """T001."""
    repair = "Export with opset 21 and IR 10."
    if view.opset is None:
        yield Problem("", "opset_import", "no version of the ONNX domain", repair)
    elif view.opset < OPSETS[0]:
        yield Problem("", "opset_import", f"opset {view.opset}", repair)
    elif view.opset > OPSETS[1]:
        why = "RTX 1.7 reads it with the meaning of older opsets." if view.request.rtx else ""
        severity = WARNING if view.request.rtx else ERROR
        yield Problem("", "opset_import", f"opset {view.opset}", repair, why, severity)


def opset_floors(view: GraphView) -> Iterator[Problem]:
    """T002."""
    opset = view.opset or 0
    for node in view.qdq:
        for floor, what in _floors(view, node):
            if opset < floor:
                value = f"{what} needs opset {floor}, the model has {opset}"
                yield Problem(node.name, node.input(1), value, "Export with opset 21.")


def feature_floor(view: GraphView) -> int:
    """Returns the lowest opset that defines every Q/DQ feature of the graph, 0 without any."""
    return max((floor for node in view.qdq for floor, _ in _floors(view, node)), default=0)


def _floors(view: GraphView, node: Node) -> Iterator[tuple[int, str]]:
    scale = view.operand(node, 1)
    if scale is not None and (scale.size or 0) > 1:
        yield 13, "a scale per channel"
    if scale is not None and scale.dtype in {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
        yield 19, f"a {type_name(scale.dtype)} scale"
    quantized = view.quantized_type(node)
    if quantized in _TYPE_FLOORS:
        yield _TYPE_FLOORS[quantized], type_name(quantized)
    if node.integer("block_size"):
        yield 21, "a block size"


def missing_profiles(view: GraphView) -> Iterator[Problem]:
    """T032."""
    if view.request.profiles_given:
        return
    for value in view.inputs:
        shape = view.shape_of(value.name)
        if shape is None or None in shape:
            sizes = "unknown rank" if shape is None else "x".join(str(s or "?") for s in shape)
            repair = f"Give min, opt and max shapes for {value.name}."
            yield Problem("", value.name, f"shape {sizes}", repair)


def newer_ir(view: GraphView) -> Iterator[Problem]:
    """T033."""
    if view.model.ir_version > PARSER_IR:
        value = f"IR {view.model.ir_version}, the parser was built for {PARSER_IR}"
        yield Problem("", "ir_version", value, "Export with IR 10.")


def lacking_flags(view: GraphView) -> Iterator[Problem]:
    """T035."""
    if view.request.target == "trt10.16":
        return
    for flag in view.request.flags:
        name = flag.strip().upper().replace("-", "_")
        if name in GONE_FLAGS:
            value = f"{view.request.target} has no such flag"
            yield Problem("", name, value, f"Instead, {GONE_FLAGS[name]}.")


RULES = (
    Rule("T000", NOTE, "Parts that this check does not look into are named.",
         "The rules read the main graph only.", unseen),
    Rule("T001", ERROR, f"The opset is {OPSETS[0]} to {OPSETS[1]}.",
         "TensorRT's parser documents these opsets.", opset_range),
    Rule("T002", ERROR, "Each Q/DQ feature stands at or above the opset that defined it.",
         "Below it the model is not valid ONNX, and readers disagree on its meaning.",
         opset_floors),
    Rule("T032", WARNING, "Dynamic inputs have a min/opt/max profile.",
         "The builder refuses a network with dynamic inputs and no profile.", missing_profiles),
    Rule("T033", NOTE, "The IR version is one that the parser knows.",
         "A newer IR may hold fields that the parser skips.", newer_ir),
    Rule("T035", NOTE, "The flags asked for exist in the chosen TensorRT.",
         "Networks are strongly typed there: precision is part of the graph.", lacking_flags),
)  # fmt: skip
