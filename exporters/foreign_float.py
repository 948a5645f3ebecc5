"""Anyone's float ONNX file in the form that placement and Q/DQ insertion work on.

Names of tensors stay, because calibration tables are told by them. In this order:

1. Initializers that old files list among the inputs are inputs no more.
2. Opsets before 21 are raised to it by ONNX's own converter; 21 to 25 stay; the IR follows.
3. Constant nodes, and copies of constants, become initializers.
4. Every node gets a name of its own.
5. BatchNorm behind a convolution that nobody else reads is folded into it. The convolution then
   computes the BatchNorm's tensor, under the BatchNorm's name, as TensorRT's own fusion does.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.float_view import WEIGHT_AXES
from fdda_deploy.exporters.norm_folding import fold_batch_norms, free_name, read_by_bodies

OPSET, NEWEST_OPSET = 21, 25
IR_VERSION = 10
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear")
_CONSTANT_ATTRIBUTES = ("value", "value_float", "value_floats", "value_int", "value_ints")


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy of ``model`` that `placement.place` and `qdq.insert_qdq` take.

    Raises:
        ExportError: It breaks the ONNX standard, is quantized already, is not in float32, has an
            opset that cannot be brought to 21, or has no nodes.
    """
    _refuse(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _drop_listed_initializers(copy.graph)
    copy = _raised(copy)
    _lift_constants(copy.graph)
    _require_sound_values(copy.graph)
    _name_nodes(copy.graph)
    fold_batch_norms(copy.graph)
    _drop_unused(copy.graph)
    return copy


def _refuse(model: onnx.ModelProto) -> None:
    if not model.graph.node:
        raise ExportError("the ONNX model has no nodes: nothing to quantize. Export it again.")
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0][:200].rstrip(".")
        raise ExportError(f"the graph is not sound ONNX: {reason}. Export it again.") from error
    for node in model.graph.node:
        if node.op_type in _QUANTIZED:
            raise ExportError(
                f"{node.name or node.output[0]}: {node.op_type}: the graph is quantized already. "
                "Give the float ONNX file that it was made from."
            )


def _drop_listed_initializers(graph: onnx.GraphProto) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in constants]
    del graph.input[:]
    graph.input.extend(kept)


def _raised(model: onnx.ModelProto) -> onnx.ModelProto:
    versions = [entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}]
    opset = max(versions, default=1)
    if opset > NEWEST_OPSET:
        raise ExportError(
            f"opset {opset}: TensorRT reads up to {NEWEST_OPSET}. Export the network with opset "
            f"{OPSET}."
        )
    if opset < OPSET:
        try:
            model = version_converter.convert_version(model, OPSET)
        except (version_converter.ConvertError, RuntimeError, ValueError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ExportError(
                f"opset {opset} cannot be converted to {OPSET} ({reason}). Export the network with "
                f"opset {OPSET}."
            ) from error
    model.ir_version = max(IR_VERSION, helper.find_min_ir_version_for(model.opset_import, True))
    return model


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Makes initializers of Constant nodes and of what Identity nodes copy from initializers."""
    outputs = {value.name for value in graph.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        tensor = _constant_of(node, constants)
        if tensor is None or node.output[0] in outputs:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
        else:
            tensor.name = node.output[0]
            constants[tensor.name] = tensor
            graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(kept)


def _constant_of(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> TensorProto | None:
    """Returns a new tensor with the node's value, None where that is not a plain constant."""
    copy = TensorProto()
    if node.op_type == "Identity" and node.input[0] in constants:
        copy.CopyFrom(constants[node.input[0]])
        return copy
    if node.op_type != "Constant":
        return None
    for attribute in node.attribute:
        if attribute.name not in _CONSTANT_ATTRIBUTES:
            continue
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value":
            copy.CopyFrom(value)
            return copy
        kind = np.float32 if "float" in attribute.name else np.int64
        copy.CopyFrom(numpy_helper.from_array(np.asarray(value, dtype=kind)))
        return copy
    return None


def _require_sound_values(graph: onnx.GraphProto) -> None:
    """Refuses constants whose bytes do not match their shape, and weights that no layer can have.

    ONNX's checker looks at neither.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for name, tensor in constants.items():
        try:
            numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
            raise ExportError(
                f"{name}: the tensor's data does not match its shape {list(tensor.dims)}. "
                "Export the network again."
            ) from error
    for node in graph.node:
        fault = _fault(node, constants) if node.op_type in _WEIGHTED else ""
        if fault:
            raise ExportError(f"{node.name or node.output[0]} ({node.op_type}): {fault}")


def _fault(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> str:
    """Returns what is wrong with the constants of a weighted node, empty if nothing is."""
    weight = constants.get(node.input[1])
    if weight is None:
        return ""
    if weight.data_type != TensorProto.FLOAT:
        kinds = {number: kind for kind, number in TensorProto.DataType.items()}
        kind = kinds.get(weight.data_type, str(weight.data_type))
        return f"weight {weight.name} has type {kind}, want FLOAT. Export it in float32."
    integers = {a.name: a.i for a in node.attribute if a.name in {"group", "transB"}}
    groups = integers.get("group", 1)
    if node.op_type in WEIGHT_AXES and (groups < 1 or len(weight.dims) < 3):
        return f"{groups} groups, weight of shape {list(weight.dims)}. Export the network again."
    if node.op_type == "MatMul" or len(weight.dims) < 2:
        return ""
    axis = WEIGHT_AXES.get(node.op_type, 0 if integers.get("transB") else 1)
    channels = weight.dims[axis] * (groups if node.op_type == "ConvTranspose" else 1)
    bias = constants.get(node.input[2]) if len(node.input) > 2 else None
    fits = bias is None or list(bias.dims)[-1:] in ([channels], [1], [])
    if not fits or (bias is not None and node.op_type in WEIGHT_AXES and len(bias.dims) != 1):
        shape = [] if bias is None else list(bias.dims)
        return f"bias of shape {shape} for {channels} channels. Export the network again."
    return ""


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Names nodes without a name, and all but the first of several with the same."""
    taken = {node.name for node in graph.node}
    seen: set[str] = set()
    for node in graph.node:
        if not node.name or node.name in seen:
            node.name = free_name(node.name or node.op_type, taken)
        taken.add(node.name)
        seen.add(node.name)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {tensor for node in graph.node for tensor in node.input} | read_by_bodies(graph)
    used |= {value.name for value in graph.output}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    del graph.value_info[:]  # shapes of tensors that may be gone; whoever needs them infers them
