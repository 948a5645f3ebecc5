"""Placement for a small TensorRT-RTX plan: where INT8 saves more bytes than its kernels take.

A plan carries the source text of every kernel that is generated, most of it the same preamble. With
one scale per weight tensor a convolution, its bias and its activation function run in a kernel of
the library; what is generated then is the rounding of each quantized tensor, once per shape and
once more per distinct scale (read off the plans of TensorRT-RTX 1.7.1 by `engines.plan_kernels`;
docs/engine_build.md). So, beside the rows of `placement.TABLE`:

1. Layers whose inputs have one shape pay for its kernel together, or stay in float.
2. Every 8-bit weight tensor has one scale.
3. A residual's skip stays in float: INT8 would be made a float again by a kernel of its own.
4. Quantized tensors of one shape share a scale.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx

from fdda_deploy.exporters.float_view import FloatView
from fdda_deploy.exporters.placement import place
from fdda_deploy.exporters.rules.shapes import Shape, tensor_types
from fdda_deploy.exporters.weight_layout import Widths
from fdda_deploy.quant.points import ActivationPoint, Placement
from fdda_deploy.quant.scheme import Scheme

KERNEL_BYTES = 135_000
"""Source of one generated kernel: 131,000 to 139,300 bytes in mobilenet_v2's plan, 128,000 of them
the preamble. Which layers of mobilenet_v2 stay in float is the same from 60,000 to 270,000."""
SAVED_BYTES = 3
"""Of the four bytes of a float32 weight that INT8 stores in one."""
DOES_NOT_PAY = (
    "INT8 would make the plan larger (compact plan): rounding inputs of this shape takes a "
    "generated kernel, whose source is longer than what their layers' weights save."
)


def is_compact(scheme: Scheme, target: str) -> bool:
    """Whether `place_compact` is for this scheme and target: integers of 8 bits on ``rtx``.

    Weights of fewer bits do not bear one scale for all their channels.
    """
    return target == "rtx" and scheme.int8_throughout


def place_compact(
    model: onnx.ModelProto,
    scheme: Scheme,
    *,
    torch_tensors: Collection[str],
    parameters: Mapping[str, object],
    widths: Widths | None = None,
) -> Placement:
    """Returns every point of ``model`` that pays for itself in a plan of TensorRT-RTX.

    A network of which no layer behind its input pays is quantized whole, with rules 2 to 4.

    Args:
        model: Float graph (`exporters.float_onnx`).
        scheme: One that `is_compact` takes.
        torch_tensors: As `place` has it.
        parameters: As `place` has it.
        widths: As `place` has it; layers that are named keep what is asked for.

    Raises:
        ExportError: As `place` does.
    """

    def placed(chosen: Widths) -> Placement:
        found = place(
            model,
            scheme,
            "rtx",
            torch_tensors=torch_tensors,
            parameters=parameters,
            widths=chosen,
        )
        return _with_float_skips(found, additions)

    additions = {node.name for node in model.graph.node if node.op_type == "Add"}
    asked = dict(widths or {})
    shapes = {name: shape[1:] for name, shape in tensor_types(model)[1].items()}
    graph = FloatView(model.graph)
    weights = {entry.node.name: math.prod(entry.shape) for entry in graph.weighted()}
    inputs = {value.name for value in model.graph.input}
    everything = placement = placed(asked)
    dear: set[str] = set()
    while more := _dear(placement.activations, shapes, weights, inputs) - asked.keys():
        dear |= more
        placement = placed(asked | dict.fromkeys(dear))
        if all(point.tensor in inputs for point in placement.activations):
            placement, dear = everything, set()
            break
    return _sharing(_with_reasons(placement, dear), shapes)


def unpaid_layers(
    reads: Iterable[tuple[str, Collection[str]]],
    shapes: Mapping[str, Shape],
    weights: Mapping[str, int],
    inputs: Collection[str],
) -> set[str]:
    """Returns the layers that together save less than the kernel that rounds their inputs takes.

    The network's own input is not counted: the kernel of a convolution of three channels is
    generated in float as well (149,057 bytes, 155,045 in INT8).

    Args:
        reads: A quantized tensor and the layers that read it, for each.
        shapes: Of one image's share of each tensor; a tensor without a whole one is not counted.
        weights: How many weights each layer has.
        inputs: The network's.
    """
    saved: dict[Shape, int] = defaultdict(int)
    readers: dict[Shape, set[str]] = defaultdict(set)
    for tensor, layers in reads:
        shape = shapes.get(tensor)
        if shape is None or None in shape or tensor in inputs:
            continue
        saved[shape] += SAVED_BYTES * sum(weights[layer] for layer in layers)
        readers[shape] |= set(layers)
    return {node for shape in saved if saved[shape] < KERNEL_BYTES for node in readers[shape]}


def _dear(
    points: Sequence[ActivationPoint],
    shapes: Mapping[str, Shape],
    weights: Mapping[str, int],
    inputs: Collection[str],
) -> set[str]:
    reads = [(p.tensor, {node for node, _ in p.consumers if node in weights}) for p in points]
    return unpaid_layers(reads, shapes, weights, inputs)


def _with_float_skips(placement: Placement, additions: Collection[str]) -> Placement:
    """Returns the placement without the edges to additions, and the points that had no others."""
    kept = []
    for point in placement.activations:
        edges = tuple(edge for edge in point.consumers if edge[0] not in additions)
        if edges == point.consumers:
            kept.append(point)
        elif edges:  # who reads the float tensor as well would see a shift
            kept.append(dataclasses.replace(point, consumers=edges, shifted=False))
    return dataclasses.replace(placement, activations=tuple(kept))


def _with_reasons(placement: Placement, dear: Collection[str]) -> Placement:
    left = tuple((n, DOES_NOT_PAY if n in dear else why) for n, why in placement.left_float)
    return dataclasses.replace(placement, left_float=left)


def _sharing(placement: Placement, shapes: Mapping[str, Shape]) -> Placement:
    """Returns the placement with one scale per weight, and one per shape of activations."""
    members: dict[Shape, list[str]] = defaultdict(list)
    for point in placement.activations:
        shape = shapes.get(point.tensor)
        if shape is not None and None not in shape and point.num_bits == 8:
            members[shape].append(point.tensor)
    shared = {
        tensor: "x".join(map(str, shape))
        for shape, tensors in members.items()
        if len(tensors) > 1
        for tensor in tensors
    }
    return dataclasses.replace(
        placement,
        activations=tuple(
            dataclasses.replace(point, shares=shared.get(point.tensor, ""))
            for point in placement.activations
        ),
        weights=tuple(
            dataclasses.replace(point, one_scale=point.num_bits == 8 and point.block_size is None)
            for point in placement.weights
        ),
    )
