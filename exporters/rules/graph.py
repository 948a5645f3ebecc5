"""Look-ups over one ONNX graph for the rules: who makes a tensor, who reads it, what is constant.

Every look-up answers None where the graph does not say; a damaged graph is a finding, not a crash.
The bodies of If, Loop and Scan are not looked into (T000 says so).
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from fdda_deploy.exporters.rules.shapes import tensor_types

FloatArray = npt.NDArray[np.float64]
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
FOUR_BIT = (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1)
WEIGHTED_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
MOVERS = frozenset(
    {"Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Expand",
     "DepthToSpace", "SpaceToDepth", "Gather", "Split"}
)  # fmt: skip
"""Operators that move values without changing them: Q and DQ commute with all of them."""
COMMUTING = MOVERS | {"MaxPool", "Relu"}
"""Order-preserving or moving: Q and DQ with one positive scale commute with them."""
RTX_MIN_CHANNELS_PER_GROUP = 4
"""Below this many input channels per group INT8 makes a plan of TensorRT-RTX larger than float."""
_MAX_DECODED = 2**22


@dataclass(frozen=True)
class Request:
    """What the caller said about the build.

    Attributes:
        target: ``trt11``, ``trt10.16`` or ``rtx``.
        compute_capabilities: For instance (86, 89).
        profiles_given: The build has a min/opt/max profile for every dynamic input.
        flags: Builder flags that were asked for.
    """

    target: str
    compute_capabilities: tuple[int, ...] = ()
    profiles_given: bool = False
    flags: tuple[str, ...] = ()

    @property
    def rtx(self) -> bool:
        """TensorRT-RTX, where some rules were measured to be softer or harder."""
        return self.target == "rtx"


@dataclass(frozen=True, eq=False)
class Node:
    """One node with a name that is never empty."""

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    proto: onnx.NodeProto

    def input(self, index: int) -> str:
        """Returns the name of an input, empty where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def output(self) -> str:
        """Returns the name of the first output, empty where there is none."""
        return self.outputs[0] if self.outputs else ""

    def integer(self, name: str) -> int | None:
        """Returns an integer attribute, None where it is missing or of another type."""
        for attribute in self.proto.attribute:
            if attribute.name == name and attribute.type == onnx.AttributeProto.INT:
                return int(attribute.i)
        return None

    def integers(self, name: str) -> tuple[int, ...] | None:
        """Returns an attribute that is a list of integers, None where it is missing."""
        for attribute in self.proto.attribute:
            if attribute.name == name and attribute.type == onnx.AttributeProto.INTS:
                return tuple(int(value) for value in attribute.ints)
        return None


@dataclass(frozen=True, eq=False)
class Operand:
    """A scale or zero-point: its name, and its tensor where it is constant."""

    name: str
    tensor: TensorProto | None

    @property
    def dims(self) -> tuple[int, ...] | None:
        """Shape where it is constant."""
        return None if self.tensor is None else tuple(int(size) for size in self.tensor.dims)

    @property
    def size(self) -> int | None:
        """Number of elements where it is constant."""
        return None if self.dims is None else math.prod(self.dims)

    @property
    def dtype(self) -> int | None:
        """ONNX element type where it is constant."""
        return None if self.tensor is None else int(self.tensor.data_type)

    @cached_property
    def values(self) -> FloatArray | None:
        """Elements as float64, flat; None where they are not in the model or cannot be read."""
        return None if self.tensor is None else decoded(self.tensor)


class GraphView:
    """One graph with its look-ups; see the file's first lines."""

    def __init__(self, model: onnx.ModelProto, request: Request) -> None:
        self.model = model
        self.request = request
        self.graph = model.graph
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        self.inputs = [v for v in self.graph.input if v.name not in self.initializers]
        self.outputs = {value.name for value in self.graph.output}
        self.nodes = tuple(_node(index, proto) for index, proto in enumerate(self.graph.node))
        self._producers = {name: node for node in self.nodes for name in node.outputs if name}
        self._consumers: dict[str, list[tuple[Node, int]]] = defaultdict(list)
        for node in self.nodes:
            for index, name in enumerate(node.inputs):
                if name:
                    self._consumers[name].append((node, index))
        versions = [o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}]
        self.opset = int(max(versions)) if versions else None
        self.types, self.shapes, self.inference_failure = tensor_types(model)
        self.quantizes = [node for node in self.nodes if node.op_type == "QuantizeLinear"]
        self.dequantizes = [node for node in self.nodes if node.op_type == "DequantizeLinear"]
        self.qdq = [n for n in self.nodes if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]
        self.weighted = [n for n in self.nodes if n.op_type in WEIGHTED_OPS and len(n.inputs) > 1]

    def producer(self, tensor: str) -> Node | None:
        """Returns the node that makes ``tensor``, None for inputs and initializers."""
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> list[tuple[Node, int]]:
        """Returns the nodes that read ``tensor``, each with the index of the input."""
        return list(self._consumers.get(tensor, ()))

    def constant(self, tensor: str, *, direct: bool = False) -> TensorProto | None:
        """Returns the value of an initializer or Constant node, also behind Identity.

        Args:
            tensor: Name.
            direct: Do not look behind Identity.
        """
        seen: set[str] = set()
        while tensor not in self.initializers:
            node = self.producer(tensor)
            if node is None or tensor in seen:
                return None
            if node.op_type == "Constant":
                return _constant_value(node)
            if node.op_type != "Identity" or direct:
                return None
            seen.add(tensor)
            tensor = node.input(0)
        return self.initializers[tensor]

    def operand(self, node: Node, index: int) -> Operand | None:
        """Returns an input of ``node`` as a possible constant; None where it is left out."""
        name = node.input(index)
        return Operand(name, self.constant(name)) if name else None

    def rooted(self, tensor: str) -> bool:
        """Returns whether ``tensor`` is a constant, possibly moved or quantized on the way."""
        seen: set[str] = set()
        while tensor not in seen:
            if self.constant(tensor) is not None:
                return True
            seen.add(tensor)
            node = self.producer(tensor)
            if node is None or node.op_type not in MOVERS | {"QuantizeLinear"}:
                return False
            tensor = node.input(0)
        return False

    def dequantizer(self, tensor: str) -> Node | None:
        """Returns the DequantizeLinear whose values ``tensor`` holds, moved or rectified or not."""
        seen: set[str] = set()
        while tensor not in seen:
            seen.add(tensor)
            node = self.producer(tensor)
            if node is None or node.op_type == "DequantizeLinear":
                return node
            if node.op_type not in COMMUTING:
                return None
            tensor = node.input(0)
        return None

    def quantized_type(self, node: Node) -> int | None:
        """Returns the ONNX type of the integers (or FP8, FP4) of a Q or DQ node."""
        zero_point = self.operand(node, 2)
        if node.op_type == "DequantizeLinear":
            known = self.type_of(node.input(0))
            return known if known is not None or zero_point is None else zero_point.dtype
        if zero_point is not None:
            return zero_point.dtype or self.type_of(zero_point.name)
        return node.integer("output_dtype") or int(TensorProto.UINT8)

    def type_of(self, tensor: str) -> int | None:
        """Returns the ONNX element type of ``tensor``."""
        constant = self.constant(tensor)
        if constant is not None:
            return int(constant.data_type)
        known = self.types.get(tensor)
        node = self.producer(tensor)
        if known is None and node is not None and node.op_type == "DequantizeLinear":
            scale = self.operand(node, 1)  # opset 23 may state another type than the scale's
            return node.integer("output_dtype") or (None if scale is None else scale.dtype)
        return known

    def shape_of(self, tensor: str) -> tuple[int | None, ...] | None:
        """Returns the shape of ``tensor``, None for unknown sizes, None for an unknown rank."""
        constant = self.constant(tensor)
        if constant is not None:
            return tuple(int(size) for size in constant.dims)
        return self.shapes.get(tensor)

    def axis_of(self, node: Node, rank: int) -> int | None:
        """Returns the axis of a Q or DQ node (default 1) counted from 0; None outside ``rank``."""
        axis = node.integer("axis")
        axis = 1 if axis is None else axis
        axis = axis + rank if axis < 0 else axis
        return axis if 0 <= axis < rank else None


def decoded(tensor: TensorProto) -> FloatArray | None:
    """Returns the elements of a small numeric tensor as float64, flat; None where unreadable."""
    outside = tensor.data_location == TensorProto.EXTERNAL
    odd_types = (TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128)
    count = math.prod(int(size) for size in tensor.dims)
    if outside or tensor.data_type in odd_types or not 0 <= count <= _MAX_DECODED:
        return None
    try:
        with np.errstate(all="ignore"):
            values = numpy_helper.to_array(tensor).astype(np.float64).reshape(-1)
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError, IndexError):
        return None  # a damaged tensor; T003 and T005 report it as unreadable
    return np.asarray(values, dtype=np.float64) if values.size == count else None


def type_name(data_type: int | None) -> str:
    """Returns for instance ``INT8``."""
    if data_type is None:
        return "an unknown type"
    known = TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(data_type)) if data_type in known else f"{data_type}"


def _node(index: int, proto: onnx.NodeProto) -> Node:
    name = str(proto.name) or f"{proto.op_type} #{index}"
    inputs, outputs = tuple(map(str, proto.input)), tuple(map(str, proto.output))
    return Node(name, str(proto.op_type), str(proto.domain), inputs, outputs, proto)


def _constant_value(node: Node) -> TensorProto | None:
    """Returns the tensor of a Constant node, whichever attribute holds it."""
    kinds = {
        "value_float": ("f", TensorProto.FLOAT),
        "value_floats": ("floats", TensorProto.FLOAT),
        "value_int": ("i", TensorProto.INT64),
        "value_ints": ("ints", TensorProto.INT64),
    }
    for attribute in node.proto.attribute:
        if attribute.name == "value" and attribute.type == onnx.AttributeProto.TENSOR:
            return attribute.t
        if attribute.name in kinds:
            field, data_type = kinds[attribute.name]
            values = getattr(attribute, field)
            scalar = field in {"f", "i"}
            return onnx.helper.make_tensor(
                node.output(), data_type, [] if scalar else [len(values)],
                [values] if scalar else list(values),
            )  # fmt: skip
    return None
