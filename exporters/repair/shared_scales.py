"""R16: for a compact plan, activations of one shape share a scale.

1. The kernel that rounds a tensor is generated once per shape, and once more per distinct scale.
2. A tensor that layers alone make and read is multiplied as a whole until its scale is the one to
   share: its maker's weight and bias by the factor, its readers' weights by the inverse, which for
   integers is their scale. The same integers come out.
3. Any other takes the largest of their scales, up to 2.5 times its own (`quant.sharing`). Where its
   layers save less than two kernels take, it is not worth one of its own: up to 3.5 times.
4. A grid only ever gets wider. Where biases can move the tensor, its lowest value stays where it
   was, for it may stand for a ReLU; elsewhere its zero stays.
5. A grid that ends at 6 or before, and may so stand for a ReLU6, takes no scale that ends later.
6. A tensor whose biases took up its zero-point (R12) and cannot move again is left alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from fdda_deploy.exporters.compact import KERNEL_BYTES, SAVED_BYTES
from fdda_deploy.exporters.repair.activations import group_of, move
from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.grids import Grid, grid_of
from fdda_deploy.exporters.repair.implied import RELU6, put_back
from fdda_deploy.exporters.repair.layers import image_shapes, quantized_layers
from fdda_deploy.exporters.repair.nodes import label
from fdda_deploy.exporters.repair.record import Change, Repair
from fdda_deploy.exporters.repair.taken_up import Shifter
from fdda_deploy.exporters.rules.graph import Request
from fdda_deploy.exporters.rules.shapes import Shape
from fdda_deploy.exporters.zero_points import Absorption
from fdda_deploy.quant.sharing import MOST_COARSENED, shared_scales

MOST_WITHOUT_A_KERNEL = 3.5
"""In place of `MOST_COARSENED` for a tensor that is not worth a kernel. On ranges as other tools
take them, the largest values seen, two of mobilenet_v2's sums differ by 2.9 and 3.0 from the first
tensor of their chains: see docs/check.md for what sharing each costs."""
_SIX = RELU6 * (1 + 1e-5)


@dataclass(frozen=True)
class _Pair:
    """A Q with its DQs.

    Attributes:
        quantize: The Q.
        grid: Symmetric INT8, one float32 scale.
        group: The Q and its DQs.
        absorption: Who moves or multiplies the tensor; None if nobody has to.
        free: The tensor can be multiplied.
        most: The largest scale that it may take otherwise.
    """

    quantize: onnx.NodeProto
    grid: Grid
    group: Sequence[onnx.NodeProto]
    absorption: Absorption | None
    free: bool
    most: float

    @property
    def source(self) -> str:
        return str(self.quantize.input[0])

    @property
    def scale(self) -> float:
        return float(self.grid.scale)


def _apply(graph: GraphEdit, request: Request) -> Iterator[Change]:
    if not request.rtx:
        return
    shifter, shapes = Shifter(graph), image_shapes(graph)
    sets: dict[Shape, list[_Pair]] = defaultdict(list)
    for pair in list(_pairs(graph, shifter)):
        shape = shapes.get(pair.source)
        if shape is not None and None not in shape:
            sets[shape].append(pair)
    for shape, pairs in sets.items():
        taken, givers = _taken(pairs), {pair.scale: pair.quantize for pair in pairs}
        count, size = Counter(taken), "x".join(map(str, shape)) or "()"
        for pair, scale in zip(pairs, taken, strict=True):
            if scale != pair.scale:
                how = _give(graph, shifter, pair, givers[scale])
                what = f"scale {pair.scale:.4g} to {scale:.4g}, as {count[scale]} tensors of {size}"
                yield Change(label(pair.quantize), pair.source, f"{what}{how}", False)
    shifter.finish()


def _taken(pairs: Sequence[_Pair]) -> list[float]:
    """Returns the scale that each of the pairs of one shape takes."""
    bound = {str(at): pair for at, pair in enumerate(pairs) if not pair.free}
    found = shared_scales(
        {name: pair.scale for name, pair in bound.items()},
        {name: pair.most for name, pair in bound.items()},
    )
    largest = max(found.values(), default=max(pair.scale for pair in pairs))
    return [found.get(str(at), largest) for at in range(len(pairs))]


def _give(graph: GraphEdit, shifter: Shifter, pair: _Pair, giver: onnx.NodeProto) -> str:
    """Gives a pair the scale of another; returns in words what layers do about it."""
    words, operands = "", [str(name) for name in giver.input[1:3]]
    held = graph.constant(operands[0])
    assert held is not None
    scale = float(held.reshape(()))
    if pair.free:
        assert pair.absorption is not None
        factor = scale / pair.scale
        words = ", " + shifter.multiply(pair.absorption, factor)
        graph.notes.scaled[pair.source] = factor
    else:
        graph.notes.coarsened.add(pair.source)
        if pair.absorption is not None:
            words = ", " + shifter.shift(pair.absorption, pair.grid, scale)
            graph.notes.moved.add(pair.source)
    for member in pair.group:
        move(graph, member, operands)
    return words


def _pairs(graph: GraphEdit, shifter: Shifter) -> Iterator[_Pair]:
    """Yields the pairs whose scale may change."""
    saved: Counter[str] = Counter()
    for layer in quantized_layers(graph):
        saved[layer.source] += SAVED_BYTES * layer.num_weights
    for node in graph.of_type("QuantizeLinear"):
        grid = grid_of(graph, node)
        if grid is None or not grid.repaired or grid.axis is not None or len(node.input) < 3:
            continue
        source = str(node.input[0])
        group = None if graph.tensor(source) is not None else group_of(graph, node, grid)
        if group is None or grid.scale.dtype != np.float32:
            continue
        absorption, free, steps = shifter.found(node, grid), False, np.inf
        if absorption is not None and shifter.can_multiply(absorption, source):
            free = True
        elif source in graph.notes.moved:
            if absorption is None:
                continue
            steps = 255
        elif absorption is not None and not shifter.bounded_below(absorption):
            steps = 255
        else:
            absorption, steps = None, 127 if put_back(graph, source) else np.inf
        few = saved[source] < 2 * KERNEL_BYTES
        most = (MOST_WITHOUT_A_KERNEL if few else MOST_COARSENED) * float(grid.scale)
        if steps * float(grid.scale) <= _SIX:
            most = min(most, _SIX / steps)
        yield _Pair(node, grid, group, absorption, free, most)


REPAIR = Repair(
    "R16",
    (),
    "Compact plan: activations of one shape share a scale.",
    "Layers multiply a tensor for nothing, or its grid gets up to 3.5 times as wide.",
    _apply,
    compact=True,
)
