"""What does not fit the graph is refused before a Q/DQ node is written, and named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest
from export_networks import Residual
from qdq_cases import case_of

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.qdq import Grids, insert_qdq
from fdda_deploy.quant.points import ActivationPoint, Placement, WeightPoint
from fdda_deploy.quant.qparams import QParams

Pair = tuple[Placement, Grids]
replace = dataclasses.replace


def without(mapping: Mapping, key: str) -> dict:
    return {name: value for name, value in mapping.items() if name != key}


def first(p: Placement) -> tuple[ActivationPoint, WeightPoint]:
    return p.activations[1], p.weights[1]


def other_range(p: Placement, g: Grids, qparams: QParams) -> Pair:
    return p, replace(g, activations={**g.activations, first(p)[0].tensor: qparams})


def no_range(p: Placement, g: Grids) -> Pair:
    return p, replace(g, activations=without(g.activations, first(p)[0].tensor))


def no_integers(p: Placement, g: Grids) -> Pair:
    return p, replace(g, weights=without(g.weights, first(p)[1].initializer))


def unknown_tensor(p: Placement, g: Grids) -> Pair:
    point = first(p)[0]
    ghosts = {"ghost": g.activations[point.tensor]}
    return replace(p, activations=(replace(point, tensor="ghost"),)), replace(g, activations=ghosts)


def unknown_initializer(p: Placement, g: Grids) -> Pair:
    weight = first(p)[1]
    ghosts = {"ghost": g.weights[weight.initializer]}
    return replace(p, weights=(replace(weight, initializer="ghost"),)), replace(g, weights=ghosts)


def unknown_consumer(p: Placement, g: Grids) -> Pair:
    return replace(p, activations=(replace(first(p)[0], consumers=(("ghost", 0),)),)), g


def other_shape(p: Placement, g: Grids) -> Pair:
    name = first(p)[1].initializer
    x_int, grid = g.weights[name]
    return p, replace(g, weights={**g.weights, name: (x_int[:1], grid)})


def new_value(name: str, size: int) -> Callable[[Placement, Grids], Pair]:
    return lambda p, g: (p, replace(g, parameters={name: np.ones(size, np.float32)}))


def per_channel(p: Placement, g: Grids) -> Pair:
    return other_range(p, g, QParams(np.ones(3), -128, 127, 1))


def zero_point(p: Placement, g: Grids) -> Pair:
    return other_range(p, g, QParams(np.float32(1), -128, 127, zero_point=3))


REFUSED = [
    (no_range, "Relu_output: no range for this tensor. Calibrate first"),
    (no_integers, "conv1.weight: no integers for this weight. Quantize first"),
    (unknown_tensor, "ghost: the graph has no such tensor"),
    (unknown_initializer, "ghost: the graph has no such initializer"),
    (unknown_consumer, "ghost: the graph has no such node"),
    (
        other_shape,
        r"conv1.weight: integers have shape \(1, 8, 3, 3\), the graph wants \(8, 8, 3, 3\)",
    ),
    (new_value("ghost.bias", 1), "ghost.bias: the graph has no such initializer"),
    (new_value("conv1.bias", 3), r"conv1.bias: new value has shape \(3,\), the graph \(8,\)"),
    (per_channel, r"Relu_output: activations take one scale \(T007\)"),
    (zero_point, r"Relu_output: zero-point 3, and no bias can take it up; TensorRT wants 0"),
]


@pytest.mark.parametrize(("damage", "message"), REFUSED, ids=[text[:30] for _, text in REFUSED])
def test_what_does_not_fit_the_graph_is_refused_by_name(damage, message):
    case = case_of(Residual, "w8a8", "trt")
    placement, grids = damage(case.placement, case.grids)
    with pytest.raises(ExportError, match=message) as caught:
        insert_qdq(case.graph.proto, placement, grids, {})
    assert "\n" not in str(caught.value)


def test_graph_that_would_not_be_valid_is_refused():
    case = case_of(Residual, "w8a8", "trt")
    damaged = onnx.ModelProto.FromString(case.graph.proto.SerializeToString())
    damaged.graph.node[0].op_type = "Frobnicate"
    with pytest.raises(ExportError, match=r"the Q/DQ graph is not valid ONNX: No Op registered"):
        insert_qdq(damaged, case.placement, case.grids, {})
