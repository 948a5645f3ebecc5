"""Pairs on activations, and which pair of a repaired graph is which of the graph before."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.grids import RANGES, Grid, grid_of
from fdda_deploy.exporters.repair.implied import CARRIERS
from fdda_deploy.exporters.repair.notes import Notes


@dataclass(frozen=True)
class Pair:
    """A Q on an activation whose integers all end in a DQ.

    Attributes:
        quantize: The Q.
        ends: Its DQs.
        grid: Of the Q.
        source: The tensor that it quantizes.
    """

    quantize: onnx.NodeProto
    ends: tuple[onnx.NodeProto, ...]
    grid: Grid
    source: str


@dataclass(frozen=True)
class Match:
    """A pair of the repaired graph and the one of the same tensor before it.

    Attributes:
        new: Of the repaired graph.
        old: None where there was none.
        rectified: A ReLU came in between.
        moved: Biases took up the zero-point.
        coarsened: It was given a scale to share.
        factor: How many times as large the tensor is.
    """

    new: Pair
    old: Pair | None
    rectified: bool
    moved: bool
    coarsened: bool
    factor: float

    @property
    def scale(self) -> float:
        """The new step, in units of the old tensor."""
        return float(self.new.grid.scale.max()) / self.factor

    def shift(self, old: Pair) -> float:
        """What biases added so that the lowest value stays where it was, else 0."""
        low = RANGES[old.grid.dtype][0] - int(old.grid.zero_point.min())
        return -128 * self.scale - low * float(old.grid.scale.max()) if self.moved else 0.0

    def widening(self, old: Pair) -> float:
        """What zero-point 0 costs in steps of the old grid."""
        if self.moved:
            return 1.0
        return float(old.grid.amax.max() / 127 / old.grid.scale.max())

    def widened(self, old: Pair) -> float:
        """A new step over what it would be in the old range."""
        return self.scale / float(old.grid.scale.max()) / self.widening(old)


def activation_pairs(graph: GraphEdit) -> Iterator[Pair]:
    """Yields every Q on an activation whose integers all end in a DQ, with those."""
    for node in graph.of_type("QuantizeLinear"):
        grid = grid_of(graph, node)
        ends = None if graph.tensor(node.input[0]) is not None else _ends(graph, node)
        if grid is not None and ends:
            yield Pair(node, tuple(ends), grid, str(node.input[0]))


def _ends(graph: GraphEdit, quantize: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    found, pending = [], [quantize.output[0]]
    while pending:
        tensor = pending.pop()
        if tensor in graph.pinned:
            return None
        for node, index in graph.readers(tensor):
            if node.op_type == "DequantizeLinear" and index == 0:
                found.append(node)
            elif node.op_type in CARRIERS and index == 0 and not node.domain:
                pending += [name for name in node.output if name]
            else:
                return None
    return found


def matched(graph: GraphEdit, pair: Pair, old_pairs: list[Pair], notes: Notes) -> Match:
    """Returns the old pair of a new one's tensor.

    Of several pairs on one tensor it is the one whose steps the new grid fits best.
    """
    node = graph.producer(pair.source)
    found, rectified = [old for old in old_pairs if old.source == pair.source], False
    if not found and node is not None and node.op_type in {"Relu", "Clip"}:
        found, rectified = [old for old in old_pairs if old.source == node.input[0]], True
    match = Match(
        pair,
        None,
        rectified,
        pair.source in notes.moved,
        pair.source in notes.coarsened,
        notes.scaled.get(pair.source, 1.0),
    )
    best = min(found, key=lambda old: abs(np.log(match.widened(old))), default=None)
    return dataclasses.replace(match, old=best)
