"""Q/DQ graphs with asymmetric grids whose zero-points biases can take up."""

from __future__ import annotations

import numpy as np
import onnx
from repair_graphs import UINT8, Foreign
from trt_rules_graphs import INT8


class Shiftable(Foreign):
    """Graph of layers with biases, mostly without padding."""

    def start(self) -> str:
        """Input, symmetric pair, 3x3 convolution: what makes the first tensor."""
        return self.layer(self.pair("x", 0.03, dtype=INT8), 16, 16, 3, out="y")

    def layer(
        self, x: str, channels: int, wide: int, size: int = 1, *, out: str = "", group: int = 1
    ) -> str:
        weight = self.weights(wide, channels // group, size, size)
        return self.add("Conv", x, weight, self.floats(wide), out=out, group=group)


def chain(zero: int = 0, dtype: int = UINT8, between: str = "", scale: float = 0.02) -> Foreign:
    """Conv -> [between] -> pair -> 1x1 Conv; y is the convolution's output."""
    g = Shiftable()
    y = g.start()
    if between == "Clip":
        y = g.add("Clip", y, g.array(np.float32(0)), g.array(np.float32(2.5)))
    elif between == "MaxPool":
        y = g.add("MaxPool", g.add("Relu", y), kernel_shape=[2, 2])
    elif between:
        y = g.add(between, y)
    g.layer(g.pair(y, scale, zero, dtype), 16, 8, out="end")
    return g


def residual(*, grouped: bool = False) -> onnx.ModelProto:
    """Two linear tensors of a residual chain, skewed, each read by a layer and an addition."""
    g = Shiftable()
    first = g.pair(g.start(), 0.03, 110)
    inner = g.pair(g.layer(first, 16, 32, group=2 if grouped else 1), 0.02, 0)
    second = g.pair(g.add("Add", first, g.layer(inner, 32, 16)), 0.05, 140)
    third = g.pair(g.layer(second, 16, 32), 0.02, 0)
    return g.model(g.add("Add", g.layer(third, 32, 16), second))
