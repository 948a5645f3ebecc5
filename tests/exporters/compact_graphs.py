"""A small network for compact plans: blocks that pay for INT8, a layer that does not, as peers
write it and as we do."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from peer_graphs import modelopt_style, ort_static, ranges

from fdda_deploy.exporters.compact import place_compact
from fdda_deploy.exporters.qdq import Grids, insert_qdq
from fdda_deploy.quant.affine import qparams_from_amax, quantize
from fdda_deploy.quant.scheme import scheme_from_name

SIZE = 4
BATCHES = tuple(
    np.random.default_rng(seed).standard_normal((4, 3, SIZE, SIZE)).astype(np.float32)
    for seed in (0, 1)
)
PEERS = ("ONNX Runtime's", "ONNX Runtime's operators", "ModelOpt's")


class Floats:
    """A float graph of pointwise convolutions with biases, rows of different sizes."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.held: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: object) -> str:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def array(self, name: str, value: np.ndarray | np.generic) -> str:
        self.held.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def conv(self, x: str, cin: int, cout: int, name: str, size: float = 1.0) -> str:
        rows = self.rng.uniform(0.3, 1.0, (cout, 1, 1, 1)) * size / cin**0.5
        weight = self.array(f"{name}_w", self.rng.standard_normal((cout, cin, 1, 1)) * rows)
        bias = self.array(f"{name}_b", self.rng.standard_normal(cout) * 0.1 * size)
        return self.op("Conv", x, weight, bias, name=name)

    def model(self, output: str, channels: int) -> onnx.ModelProto:
        value = helper.make_tensor_value_info
        ends = [
            value("input", TensorProto.FLOAT, ["n", 3, SIZE, SIZE]),
            value(output, TensorProto.FLOAT, ["n", channels, None, None]),
        ]
        graph = helper.make_graph(self.nodes, "floats", ends[:1], ends[1:], self.held)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@cache
def float_network(wide: int = 512) -> onnx.ModelProto:
    """Stem, two residual blocks 128 -> wide -> 128, a pool, a last layer of 128 x 16 weights."""
    g = Floats()
    x = g.op("Relu", g.conv("input", 3, 128, "stem"))
    for block, size in enumerate((1.0, 3.0)):
        inner = g.op("Relu", g.conv(x, 128, wide, f"expand{block}", size))
        x = g.op("Add", x, g.conv(inner, wide, 128, f"project{block}"), name=f"sum{block}")
    pooled = g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    return g.model(g.conv(pooled, 128, 16, "last"), 16)


@cache
def found() -> dict[str, float]:
    return ranges(float_network(), BATCHES)


@cache
def peer(name: str, wide: int = 512) -> onnx.ModelProto:
    """Returns the network as a quantizer writes it; to be copied before it is changed."""
    model = float_network(wide)
    if name == "ModelOpt's":
        return modelopt_style(model, ranges(model, BATCHES))
    with tempfile.TemporaryDirectory() as folder:
        operators = name.endswith("operators")
        return ort_static(model, BATCHES, Path(folder), operators=operators, per_channel=True)


def own_compact() -> onnx.ModelProto:
    """Returns what our own export makes of it by default, on the same ranges."""
    model = float_network()
    tensors = {"input", *(output for node in model.graph.node for output in node.output)}
    placement = place_compact(
        model,
        scheme_from_name("w8a8"),
        torch_tensors=tensors,
        parameters={tensor.name: (tensor.name, False) for tensor in model.graph.initializer},
    )
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = {}
    for point in placement.weights:
        grid = qparams_from_amax(np.abs(held[point.initializer]).max(), 8)
        weights[point.initializer] = (quantize(held[point.initializer], grid), grid)
    largest: dict[str, float] = defaultdict(float)
    for place in placement.activations:
        key = place.shares or place.tensor
        largest[key] = max(largest[key], found()[place.tensor])
    activations = {
        place.tensor: qparams_from_amax(largest[place.shares or place.tensor])
        for place in placement.activations
    }
    return insert_qdq(model, placement, Grids(activations, weights, {}), {})
