"""Where a plan's bytes go: which weights are in it, in which type, and what is left for the rest.

Without a GPU no plan can be opened, but TensorRT-RTX stores weights as they are multiplied: the
integers or floats of a filter, channels last, the last axis padded, stand in the plan byte for
byte. So each weight is looked for in the layouts below. What is found is measured; what is not is
called unknown, never guessed. TensorRT-RTX also carries the source text of each kernel that it
generates, which on a small network outweighs the weights; those kernels are counted by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
PADS = (1, 4, 8, 16, 32, 64)
"""Multiples that the last axis was seen padded to: 4 in INT8 stems and depthwise filters."""
MIN_BYTES = 32
"""A shorter run of bytes may stand in a plan by chance."""
MIN_DISTINCT = 4
"""So may a weight of hardly any different bytes, such as zeros."""
SAMPLE = 4096
KERNEL = re.compile(rb"__myl_\w{1,300}?_0x([0-9a-f]{32})")
ZEROS = re.compile(rb"\x00{4096,}")
UNKNOWN = "unknown"
_FLOAT_BYTES = 4
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LayerBytes:
    """One weight of the network, and the plan's share of it.

    Attributes:
        node: ONNX node that reads it.
        weight: ONNX initializer.
        stored: Type it has in the plan: ``int8``, ``int4``, ``fp8``, ``float16``, ``float32``; or
            ``unknown``.
        layout: Order of its axes in the plan, for instance ``channels-last, padded to 4``.
        num_bytes: What it takes in the plan, padding included; None where it was not found.
        float_bytes: What it would take in float32.
    """

    node: str
    weight: str
    stored: str
    layout: str
    num_bytes: int | None
    float_bytes: int

    @property
    def grew(self) -> bool:
        """Whether it takes more bytes than in float32."""
        return self.num_bytes is not None and self.num_bytes > self.float_bytes


@dataclass(frozen=True)
class PlanBytes:
    """Where the bytes of one plan go.

    Attributes:
        plan_bytes: All of it.
        layers: Every weight, in graph order.
        weight_bytes: Bytes that are weights for sure; a weight that stands once counts once.
        generated_kernels: Kernels whose source the plan carries; each shape and fusion has its own.
        zero_bytes: Bytes in long runs of zeros.
    """

    plan_bytes: int
    layers: tuple[LayerBytes, ...]
    weight_bytes: int
    generated_kernels: int
    zero_bytes: int

    @property
    def other_bytes(self) -> int:
        """Kernels, biases, scales, and weights that were not found."""
        return self.plan_bytes - self.weight_bytes

    def warnings(self) -> tuple[str, ...]:
        """Returns a sentence for each layer that grew, and one for those that were not found."""
        told = [
            f"{layer.node}: its {layer.stored} weight takes {layer.num_bytes:,} bytes in the plan "
            f"({layer.layout}), and {layer.float_bytes:,} in float32. Leave the layer in float."
            for layer in self.layers
            if layer.grew
        ]
        lost = [layer.node for layer in self.layers if layer.stored == UNKNOWN]
        if lost:
            names = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
            told.append(
                f"{names}: the weights are not in the plan as they are in the graph, so their "
                "share is unknown."
            )
        if self.zero_bytes > self.weight_bytes:
            told.append(
                f"{self.zero_bytes:,} bytes of the plan are zeros: with a fixed batch TensorRT-RTX "
                "stores the padding of INT8 inputs that have fewer than 4 channels per group. "
                "Export with a dynamic batch, or leave those layers in float."
            )
        return tuple(told)

    def to_json(self) -> dict[str, object]:
        """Returns the whole as JSON-ready values."""
        return {
            "plan_bytes": self.plan_bytes,
            "weight_bytes": self.weight_bytes,
            "other_bytes": self.other_bytes,
            "generated_kernels": self.generated_kernels,
            "zero_bytes": self.zero_bytes,
            "warnings": list(self.warnings()),
            "layers": [asdict(layer) for layer in self.layers],
        }


def attribute(plan: bytes, model: bytes) -> PlanBytes:
    """Returns the bytes of ``plan`` by the weights of the ONNX ``model`` that it was built from.

    Args:
        plan: Whole, not stripped.
        model: One that a builder took, so sound.
    """
    import onnx

    graph = onnx.load_from_string(model).graph
    layers, spans = [], set()
    for node, weight in _weights(graph):
        found = _find(plan, weight)
        layers.append(
            LayerBytes(
                node,
                weight.name,
                found.stored if found else UNKNOWN,
                found.layout if found else "",
                found.length if found else None,
                _FLOAT_BYTES * weight.size,
            )
        )
        if found is not None:
            spans.add((found.start, found.start + found.length))
    kernels = {match[1] for match in KERNEL.finditer(plan)}
    zeros = sum(len(match[0]) for match in ZEROS.finditer(plan))
    return PlanBytes(len(plan), tuple(layers), _covered(spans), len(kernels), zeros)


@dataclass(frozen=True)
class _Weight:
    """A weight as the graph has it: integers with their scale, or floats."""

    name: str
    values: npt.NDArray[Any]
    stored: str
    real: npt.NDArray[np.float32] | None  # what the integers stand for

    @property
    def size(self) -> int:
        return int(self.values.size)


@dataclass(frozen=True)
class _Found:
    stored: str
    layout: str
    start: int
    length: int


def _weights(graph: Any) -> Iterator[tuple[str, _Weight]]:
    """Yields (node, weight) for each weighted node whose weight is in the file."""
    held = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type not in WEIGHTED:
            continue
        for read in node.input[:2]:
            name, path = read, []
            while name not in held and (maker := makers.get(name)) is not None and maker.input:
                path.append(maker)
                name = maker.input[0]
            if name in held and len(held[name].dims) >= 2:
                yield node.name, _weight(held[name], path, held)


def _weight(tensor: Any, path: list[Any], held: dict[str, Any]) -> _Weight:
    from onnx import TensorProto, numpy_helper

    kinds = {TensorProto.INT8: "int8", TensorProto.INT4: "int4", TensorProto.FLOAT8E4M3FN: "fp8"}
    kind = kinds.get(tensor.data_type)
    values = numpy_helper.to_array(tensor)
    if kind is None:
        return _Weight(tensor.name, values, str(values.dtype), None)
    if kind == "fp8":
        return _Weight(tensor.name, values.view(np.uint8), kind, None)
    integers = values.astype(np.int8)
    return _Weight(tensor.name, integers, kind, _dequantized(integers, path, held))


def _dequantized(
    integers: npt.NDArray[np.int8], path: list[Any], held: dict[str, Any]
) -> npt.NDArray[np.float32] | None:
    from onnx import numpy_helper

    node = next((node for node in path if node.op_type == "DequantizeLinear"), None)
    if node is None or node.input[1] not in held:
        return None
    scale = numpy_helper.to_array(held[node.input[1]]).astype(np.float32)
    if scale.ndim > 1:  # blocks: too many roundings to expect the same bytes
        return None
    if scale.ndim == 1:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % integers.ndim
        if scale.size != integers.shape[axis]:
            return None
        scale = scale.reshape([-1 if axis == d else 1 for d in range(integers.ndim)])
    real: npt.NDArray[np.float32] = integers.astype(np.float32) * scale
    return real


def _find(plan: bytes, weight: _Weight) -> _Found | None:
    """Returns where a weight stands in the plan: as integers, else as the floats they mean."""
    forms: list[tuple[str, npt.NDArray[Any]]] = []
    if weight.real is None and weight.stored.startswith("float"):
        forms += [(kind, weight.values.astype(kind)) for kind in ("float32", "float16")]
    else:
        forms.append((weight.stored, weight.values))
    if weight.real is not None:
        with np.errstate(over="ignore"):
            forms += [(kind, weight.real.astype(kind)) for kind in ("float32", "float16")]
    for stored, values in forms:
        for layout, view in _layouts(values):
            needle = _packed(view) if stored == "int4" else view.tobytes()
            sample = needle[:: 1 + len(needle) // SAMPLE]
            if len(needle) < MIN_BYTES or len(set(sample)) < MIN_DISTINCT:
                continue
            start = plan.find(needle)
            if start >= 0:
                return _Found(stored, layout, start, len(needle))
    return None


def _layouts(values: npt.NDArray[Any]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yields (name, array) for every order and padding of axes that plans were seen to have."""
    turned = np.moveaxis(values, 1, -1) if values.ndim > 2 else values.T
    named = (("channels-last" if values.ndim > 2 else "transposed", turned), ("as in ONNX", values))
    for name, view in named if values.ndim > 2 else reversed(named):
        for pad in PADS:
            missing = -view.shape[-1] % pad
            if pad > 1 and not missing:
                continue
            padded = np.pad(view, [(0, 0)] * (view.ndim - 1) + [(0, missing)]) if missing else view
            yield (f"{name}, padded to {pad}" if missing else name), np.ascontiguousarray(padded)


def _packed(values: npt.NDArray[np.int8]) -> bytes:
    """Returns 4-bit integers two to a byte, the first in the low half."""
    flat = values.astype(np.int8).ravel() & 15
    flat = np.append(flat, 0) if flat.size % 2 else flat
    packed: Bytes = (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8)
    return packed.tobytes()


def _covered(spans: set[tuple[int, int]]) -> int:
    """Returns how many bytes lie in any of the spans."""
    total, reached = 0, -math.inf
    for start, end in sorted(spans):
        total += int(max(0, end - max(start, reached)))
        reached = max(reached, end)
    return total
