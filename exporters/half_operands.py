"""Operands of an FP16 graph: each tensor in the float type that its reader computes in."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters import names
from fdda_deploy.exporters.half_table import scale_survives, survives

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_SUFFIX = {FLOAT: "fp32", HALF: "fp16"}
_DTYPES: dict[int, type[np.float32] | type[np.float16]] = {FLOAT: np.float32, HALF: np.float16}
_LARGEST_STEP = {TensorProto.FLOAT8E4M3FN: 448.0, TensorProto.INT4: 8.0}


class Operands:
    """Constants, computed tensors and dequantized ones, in whichever float type is asked for.

    Attributes:
        nodes: The new graph's nodes so far; Casts and DQs are added as they are asked for.
        constants: New initializers by name and type.
        held: Float type of each computed tensor.
    """

    def __init__(
        self, graph: onnx.GraphProto, types: dict[str, int], initializers: dict[str, TensorProto]
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[str, int], TensorProto] = {}
        self.held = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        self._types = types
        self._initializers = initializers
        self._dequantizers: dict[str, onnx.NodeProto] = {}
        self._paired = {n.output[0] for n in graph.node if n.op_type == "QuantizeLinear"}
        self._made: dict[tuple[str, int], str] = {}

    def keep(self, dequantizer: onnx.NodeProto) -> None:
        """Notes a DQ; it is written when its values are wanted, in the type they are wanted in."""
        self._dequantizers[dequantizer.output[0]] = dequantizer

    def wanted(self, tensor: str, kind: int) -> str:
        """Returns the name under which a float tensor can be read in ``kind``, making it so."""
        if (tensor, kind) in self._made:
            return self._made[tensor, kind]
        if tensor in self._initializers:
            found = self._constant(tensor, kind)
        elif tensor in self._dequantizers:
            found = self._dequantized(tensor, kind)
        elif self.held.get(tensor, FLOAT) == kind:
            found = tensor
        else:
            found = self._cast(tensor, tensor, kind)
        self._made[tensor, kind] = found
        return found

    def produced(self, node: onnx.NodeProto, index: int, kind: int, *, pinned: bool) -> None:
        """Notes the type of an output; one that must stay FP32 gets a Cast behind it."""
        tensor = node.output[index]
        self.held[tensor] = kind
        if kind == HALF and pinned:
            inner = names.typed(tensor, _SUFFIX[HALF])
            node.output[index] = inner
            name = names.cast_node(tensor, _SUFFIX[FLOAT])
            self.nodes.append(helper.make_node("Cast", [inner], [tensor], name=name, to=FLOAT))
            self._made |= {(tensor, HALF): inner, (tensor, FLOAT): tensor}

    def native(self, tensor: str) -> int:
        """Returns the float type that a tensor has anyway; a DQ's is FP16 where FP16 holds it."""
        if tensor in self._dequantizers:
            return int(HALF if self.fits(tensor) else FLOAT)
        return int(self.held.get(tensor, FLOAT))

    def fits(self, tensor: str) -> bool:
        """Returns whether FP16 holds a constant, or the values behind a DQ; true for others."""
        if tensor in self._dequantizers:
            node = self._dequantizers[tensor]
            return self.scale_fits(node.input[1], node.input[0])
        return tensor not in self._initializers or survives(self._array(tensor))

    def scale_fits(self, scale: str, quantized: str) -> bool:
        """Returns whether FP16 holds the scale of the tensor (or zero-point) ``quantized``."""
        largest = _LARGEST_STEP.get(self._types.get(quantized, 0), 128.0)
        return scale_survives(self._array(scale), largest)

    def scale(self, name: str, kind: int, *, rounded: bool) -> str:
        """Returns a scale in ``kind``; with ``rounded``, FP32 holds FP16's number too.

        Q and DQ of one pair may stand in different types; they hold the same number.
        """
        if kind == FLOAT and rounded and (name, FLOAT) not in self.constants:
            value = self._array(name).astype(np.float16).astype(np.float32)
            self.constants[name, FLOAT] = numpy_helper.from_array(value, name)
        return self._constant(name, kind)

    def renamed(self) -> dict[str, str]:
        """Returns new names of constants that are wanted in FP16 alone: those they had before."""
        kinds: dict[str, list[int]] = defaultdict(list)
        for name, kind in self.constants:
            kinds[name].append(kind)
        return {self.constants[n, HALF].name: n for n, found in kinds.items() if found == [HALF]}

    def _dequantized(self, tensor: str, kind: int) -> str:
        """Writes the DQ in this type, or behind a DQ that FP16 cannot hold the Cast."""
        node = self._dequantizers[tensor]
        fits = self.fits(tensor)
        if kind == HALF and not fits:
            return self._cast(self.wanted(tensor, FLOAT), tensor, HALF)
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        copy.input[1] = self.scale(
            node.input[1], kind, rounded=fits and node.input[0] in self._paired
        )
        if (tensor, FLOAT if kind == HALF else HALF) in self._made:  # the name is taken
            copy.name = names.typed(copy.name, _SUFFIX[kind])
            copy.output[0] = names.typed(tensor, _SUFFIX[kind])
        self.nodes.append(copy)
        return str(copy.output[0])

    def _constant(self, name: str, kind: int) -> str:
        if (name, kind) not in self.constants:
            label = name if kind == FLOAT else names.typed(name, _SUFFIX[kind])
            with np.errstate(over="ignore"):
                value = self._array(name).astype(_DTYPES[kind])
            self.constants[name, kind] = numpy_helper.from_array(value, label)
        return str(self.constants[name, kind].name)

    def _array(self, name: str) -> npt.NDArray[np.float32]:
        if name not in self._initializers:
            raise ExportError(
                f"{name}: a scale that is not a constant; TensorRT takes none (T005). "
                "Calibrate, and store the scale as an initializer."
            )
        return np.asarray(numpy_helper.to_array(self._initializers[name]), np.float32)

    def _cast(self, source: str, tensor: str, kind: int) -> str:
        target = names.typed(tensor, _SUFFIX[kind])
        name = names.cast_node(tensor, _SUFFIX[kind])
        self.nodes.append(helper.make_node("Cast", [source], [target], name=name, to=kind))
        return target
