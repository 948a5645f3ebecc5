"""Where a plan's bytes go: which weights are in it, in which type, and what is left for the rest.

Without a GPU no plan can be opened, but TensorRT-RTX stores weights as they are multiplied: the
integers or floats of a filter, channels last, the last axis padded, stand in the plan byte for
byte. So each weight is looked for in the layouts below. What is found is measured; what is not is
called unknown, never guessed. TensorRT-RTX also carries the source text of each kernel that it
generates, which on a small network outweighs the weights; `engines.plan_kernels` shares it out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fdda_deploy.engines.plan_kernels import kernel_bytes, source_bytes
from fdda_deploy.engines.plan_weights import Weight, weights_of

PADS = (1, 4, 8, 16, 32, 64)
"""Multiples that the last axis was seen padded to: 4 in INT8 stems and depthwise filters."""
MIN_BYTES = 32
"""A shorter run of bytes may stand in a plan by chance."""
MIN_DISTINCT = 4
"""So may a weight of hardly any different bytes, such as zeros."""
SAMPLE = 4096
ZEROS = re.compile(rb"\x00{4096,}")
UNKNOWN = "unknown"
PLAN_BYTES_SCHEMA = 1
"""Version of plan_bytes.json: its names and units."""
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
        kernel_bytes: Its share of the source text of generated kernels, which a float layer
            hardly ever has.
    """

    node: str
    weight: str
    stored: str
    layout: str
    num_bytes: int | None
    float_bytes: int
    kernel_bytes: int = 0

    @property
    def grew(self) -> bool:
        """Whether its weight takes more bytes than in float32."""
        return self.num_bytes is not None and self.num_bytes > self.float_bytes

    @property
    def does_not_pay(self) -> bool:
        """Whether it is quantized and takes more, with its kernels, than its weight in float32."""
        quantized = self.num_bytes is not None and not self.stored.startswith("float")
        return quantized and (self.num_bytes or 0) + self.kernel_bytes > self.float_bytes


@dataclass(frozen=True)
class PlanBytes:
    """Where the bytes of one plan go.

    Attributes:
        plan_bytes: All of it.
        layers: Every weight, in graph order.
        weight_bytes: Bytes that are weights for sure; a weight that stands once counts once.
        generated_kernels: Kernels whose source the plan carries; each shape and fusion has its own.
        source_bytes: Of those sources; one that serves several scales stands several times.
        zero_bytes: Bytes in long runs of zeros.
    """

    plan_bytes: int
    layers: tuple[LayerBytes, ...]
    weight_bytes: int
    generated_kernels: int
    zero_bytes: int
    source_bytes: int = 0

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
        dear = [layer for layer in self.layers if layer.does_not_pay and not layer.grew]
        if dear:
            dear.sort(key=lambda layer: layer.float_bytes)
            spent = sum((layer.num_bytes or 0) + layer.kernel_bytes for layer in dear)
            told.append(
                f"{len(dear)} layers take {spent:,} bytes with the kernels that were generated "
                f"for them, and {sum(layer.float_bytes for layer in dear):,} in float32 "
                f"({_names(layer.node for layer in dear)}). A plan is smaller without them in "
                "INT8; whether it is quicker only a GPU can tell."
            )
        lost = [layer.node for layer in self.layers if layer.stored == UNKNOWN]
        if lost:
            told.append(
                f"{_names(lost)}: the weights are not in the plan as they are in the graph, so "
                "their share is unknown."
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
            "schema": PLAN_BYTES_SCHEMA,
            "plan_bytes": self.plan_bytes,
            "weight_bytes": self.weight_bytes,
            "other_bytes": self.other_bytes,
            "generated_kernels": self.generated_kernels,
            "source_bytes": self.source_bytes,
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
    named = {node: weight.name for node, weight in weights_of(graph)}
    shares = kernel_bytes(plan, graph, named)
    layers, spans = [], set()
    for node, weight in weights_of(graph):
        found = _find(plan, weight)
        layers.append(
            LayerBytes(
                node,
                weight.name,
                found.stored if found else UNKNOWN,
                found.layout if found else "",
                found.length if found else None,
                _FLOAT_BYTES * weight.size,
                round(shares.get(node, 0)),
            )
        )
        if found is not None:
            spans.add((found.start, found.start + found.length))
    zeros = sum(len(match[0]) for match in ZEROS.finditer(plan))
    sources = source_bytes(plan)
    return PlanBytes(
        len(plan), tuple(layers), _covered(spans), len(sources), zeros, sum(sources.values())
    )


def _names(nodes: Iterable[str]) -> str:
    """Returns the first three of many names, and how many more there are."""
    names = list(nodes)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True)
class _Found:
    stored: str
    layout: str
    start: int
    length: int


def _find(plan: bytes, weight: Weight) -> _Found | None:
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
