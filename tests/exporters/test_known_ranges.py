"""The graph alone bounds what stands behind a Clip, a Sigmoid or a Softmax, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper
from table_graphs import foreign

from fdda_deploy.exporters.foreign_float import prepared
from fdda_deploy.exporters.known_ranges import known_bounds


def bounds(*nodes: onnx.NodeProto, **constants: float) -> dict[str, float]:
    initializers = [
        numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()
    ]
    return known_bounds(helper.make_graph(nodes, "g", [], [], initializers))


def test_a_clip_bounds_its_output_and_what_only_moves_or_shrinks_it() -> None:
    found = known_bounds(prepared(foreign()).graph)
    assert found == {"x2": 6.0}
    node = helper.make_node
    found = bounds(
        node("Clip", ["a", "low", "high"], ["b"]),
        node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2]),
        node("Flatten", ["c"], ["d"]),
        node("Conv", ["b", "w"], ["e"]),
        low=-7.5,
        high=3.0,
    )
    assert found == {"b": 7.5, "c": 7.5, "d": 7.5}


def test_a_sigmoid_and_a_softmax_stay_within_one() -> None:
    node = helper.make_node
    found = bounds(
        node("Sigmoid", ["a"], ["s"]),
        node("Softmax", ["b"], ["t"]),
        node("Concat", ["s", "t"], ["both"], axis=1),
        node("Concat", ["s", "b"], ["open"], axis=1),
        node("Mul", ["b", "s"], ["silu"]),
    )
    assert found == {"s": 1.0, "t": 1.0, "both": 1.0}


def test_an_open_or_computed_end_bounds_nothing() -> None:
    node = helper.make_node
    found = bounds(
        node("Clip", ["a", "low"], ["b"]),
        node("Clip", ["a", "low", "elsewhere"], ["c"]),
        node("Clip", ["a", "low", "infinite"], ["d"]),
        node("Relu", ["a"], ["e"]),
        low=0.0,
        infinite=float("inf"),
    )
    assert found == {}
