"""Zero-points in biases: the integers of an asymmetric grid on the grid that TensorRT takes."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import onnx
import pytest
from export_grids import grids_of, placed, run_onnx
from export_networks import exported, graph_of, images, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its name everywhere

from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_build import BuildOptions, build_plan
from fdda_deploy.exporters.float_onnx import FloatGraph
from fdda_deploy.exporters.qdq import insert_qdq
from fdda_deploy.quant.qparams import QParams


class Bottlenecks(nn.Module):
    """Inverted residuals with a shortcut, a projection and a pooled linear head."""

    def __init__(self, act: type[nn.Module] = nn.ReLU6) -> None:
        super().__init__()
        self.act = act()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.grow, self.deep = nn.Conv2d(6, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.shrink, self.last = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 8, 1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.shrink(self.act(self.deep(self.act(self.grow(x)))))
        return self.head(self.pool(self.act(self.last(x))).flatten(1))


class Readers(nn.Module):
    """One rectified tensor after another, each read in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.padded, self.plain = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3)
        self.pooled, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.branch, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.padded(x))
        x = F.relu(self.plain(x))
        x = self.two(F.relu(F.avg_pool2d(F.relu(self.pooled(x)), 2)))
        return self.head((self.branch(F.relu(x)) + self.other(F.relu(x))).mean((2, 3)))


class Shared(nn.Module):
    """One convolution applied twice: its bias is not one tensor's alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(F.relu(self.conv(x)))).mean((2, 3)))


def shifted(kind: type[nn.Module], scheme: str = "w8a8", target: str = "trt") -> list[str]:
    placement = placed(graph_of(kind), scheme, target)
    return [point.tensor for point in placement.activations if point.shifted]


def with_zero_points(graph: FloatGraph, choose, target: str = "trt") -> onnx.ModelProto:
    """The Q/DQ graph whose shifted points have the grids that ``choose`` gives."""
    placement = placed(graph, "w8a8", "trt")
    grids = grids_of(graph, placement)
    activations = {
        p.tensor: choose() if p.shifted else grids.activations[p.tensor]
        for p in placement.activations
    }
    grids = dataclasses.replace(grids, activations=activations)
    return insert_qdq(graph.proto, dataclasses.replace(placement, target=target), grids, {})


def grid(top: float, zero_point: int) -> QParams:
    return QParams(np.float32(top / 255), -128, 127, zero_point=zero_point)


def test_tensors_that_only_unpadded_layers_and_additions_read_may_be_shifted():
    assert shifted(Bottlenecks) == [
        "stem/Conv_output",  # an unpadded layer and the shortcut
        "act/Clip_1_output",
        "Add_output",
        "Reshape_output",  # through a maximum
    ]


def test_padded_readers_means_and_a_second_reader_hold_a_tensor_where_it_is():
    # the two behind unpadded layers, and a shortcut that an addition alone reads
    assert shifted(Readers) == ["Relu_output", "Relu_1_output", "branch/Conv_output"]


def test_a_bias_that_two_nodes_read_takes_up_nothing():
    assert shifted(Shared) == []


@pytest.mark.parametrize(("scheme", "count"), [("w8a8", 4), ("w4a8", 4), ("w4a4", 1), ("fp8", 0)])
def test_only_eight_bit_integers_are_shifted(scheme, count):
    assert len(shifted(Bottlenecks, scheme)) == count


def test_the_published_placement_shifts_nothing():
    placement = placed(graph_of(Bottlenecks), "w8a8", "trt", everything=False)
    assert not any(point.shifted for point in placement.activations)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_answers_are_those_of_a_graph_with_the_zero_points_in_it(data):
    def choose() -> QParams:
        zero_point = data.draw(st.integers(-128, 127))
        scale = data.draw(st.sampled_from([0.01, 0.03, 0.05]))
        return QParams(np.float32(scale), -128, 127, zero_point=zero_point)

    chosen: list[QParams] = []
    absorbed = with_zero_points(
        graph_of(Bottlenecks), lambda: chosen.append(choose()) or chosen[-1]
    )
    again = iter(chosen)
    plain = with_zero_points(graph_of(Bottlenecks), lambda: next(again), "ort-cpu")
    x = images(8)
    wanted, found = run_onnx(plain, x), run_onnx(absorbed, x)
    # a value on the border of two steps may fall either way after the shift's own rounding
    assert np.median(np.abs(found - wanted)) < 2e-3 * np.abs(wanted).max()


def test_every_zero_point_of_the_result_is_zero_and_the_relu_is_the_saturation():
    model = with_zero_points(graph_of(Bottlenecks), lambda: grid(6, -128))
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert not any(held[name].any() for name in held if name.endswith("_zero_point"))
    before = Counter(node.op_type for node in graph_of(Bottlenecks).proto.graph.node)
    after = Counter(node.op_type for node in model.graph.node)
    assert before["Clip"] == 3
    assert after["Clip"] == 1, "the one before the padded reader"
    read = {name for node in model.graph.node for name in node.input}
    assert held.keys() <= read, "bounds that nobody reads are gone"


def test_a_clip_that_the_grid_does_not_stand_for_moves_with_the_tensor():
    model = with_zero_points(graph_of(Bottlenecks), lambda: grid(8, -100))
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    bounds = [
        (float(held[n.input[1]]), float(held[n.input[2]]))
        for n in model.graph.node
        if n.op_type == "Clip"
    ]
    shift = -100 * 8 / 255
    np.testing.assert_allclose(sorted(bounds), [(shift, 6 + shift)] * 2 + [(0, 6)], rtol=1e-6)


def test_a_rectifier_without_an_upper_bound_keeps_none():
    graph = exported(seeded(Bottlenecks, nn.ReLU))
    model = with_zero_points(graph, lambda: grid(8, -90))
    clips = [node for node in model.graph.node if node.op_type == "Clip"]
    assert [len(node.input) for node in clips] == [2, 2]


@pytest.mark.parametrize("target", ["trt", "rtx"])
def test_tensorrt_rtx_builds_what_the_placement_of_each_target_shifts(target):
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux x86-64")
    placement = placed(graph_of(Bottlenecks), "w8a8", target)
    grids = grids_of(graph_of(Bottlenecks), placement)
    low = grid(6, -128)
    moved = {p.tensor: low for p in placement.activations if p.shifted}
    assert moved
    grids = dataclasses.replace(grids, activations={**grids.activations, **moved})
    model = insert_qdq(graph_of(Bottlenecks).proto, placement, grids, {})
    built = build_plan(model.SerializeToString(), BuildOptions(()), load_api("tensorrt_rtx"))
    assert len(built.plan) > 10_000
    assert np.isfinite(run_onnx(model, images(2))).all()
