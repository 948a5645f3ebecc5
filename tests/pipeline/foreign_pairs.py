"""Q/DQ graphs as other quantizers write them, node by node: what the tests of proofs share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class PairMaker:
    """Nodes and constants of one graph.

    Attributes:
        channels: Of its input ``x`` ``(N, channels, 8, 8)`` and of its output.
        rng: Where its weights come from.
        held: Initializers so far.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.rng = np.random.default_rng(0)
        self._nodes: list[onnx.NodeProto] = []
        self.held: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        """Adds an initializer; returns its name."""
        self.held.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind: str, inputs: Sequence[str], name: str, **attributes: object) -> str:
        """Adds a node whose output has ``name``; returns that."""
        self._nodes.append(helper.make_node(kind, inputs, [name], f"{name}_node", **attributes))
        return name

    def grid(self, x: str, scale: float, zero: int) -> list[str]:
        """Adds a UINT8 grid; returns the names of its scale and zero-point."""
        return [
            self.constant(f"{x}_scale", np.float32(scale)),
            self.constant(f"{x}_zero", np.uint8(zero)),
        ]

    def pair(self, x: str, scale: float, zero: int) -> str:
        """Adds a pair on ``x``; returns what it gives."""
        grid = self.grid(x, scale, zero)
        integers = self.op("QuantizeLinear", [x, *grid], f"{x}_q")
        return self.op("DequantizeLinear", [integers, *grid], f"{x}_dq")

    def model(self, output: str) -> onnx.ModelProto:
        """Returns the graph from ``x`` to ``output``, both ``(N, channels, 8, 8)``."""
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", self.channels, 8, 8])
            for name in ("x", output)
        ]
        graph = helper.make_graph(self._nodes, "network", ends[:1], ends[1:], self.held)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
