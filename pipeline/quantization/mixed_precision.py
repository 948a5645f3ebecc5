"""How many bits each layer gets: the cheapest assignment whose measured drop holds a bound.

Damage is taken as additive over layers (each layer's own KL, `sensitivity`), cost as bytes of
weights on their grids. Under that model the best assignments form a path: start with every layer
at its narrowest, and again and again widen the layer that saves most KL per byte. The model only
orders the path; which point of it is taken, real measurements decide.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fdda_deploy.pipeline.quantization.sensitivity import LayerSensitivity, bytes_of

WIDE_BITS = 8
FLOAT_BITS = 32
MOST_MEASUREMENTS = 8
"""Enough to bisect a path of 128 assignments; each costs a quantized network and a tune pass."""


@dataclass(frozen=True)
class Candidate:
    """One width that a layer can take.

    Attributes:
        bits: Of its weight; None for float.
        num_bytes: Of its weight at that width.
        kl: Damage to the logits with this layer alone at that width, nats; 0 in float.
    """

    bits: int | None
    num_bytes: int
    kl: float


@dataclass(frozen=True)
class LayerCandidates:
    """The widths of one layer, and the ONNX nodes that take them together."""

    nodes: tuple[str, ...]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Assignment:
    """A width for every layer.

    Attributes:
        widths: Weight bits by ONNX node name, None for float, as `exporters.placement.place` reads.
        num_bytes: Of all these weights on their grids.
        kl: Sum of the layers' own damages, nats: a prediction, not a measurement.
    """

    widths: Mapping[str, int | None]
    num_bytes: int
    kl: float

    @property
    def quantizes(self) -> bool:
        """Whether any layer is quantized at all."""
        return any(bits is not None for bits in self.widths.values())


@dataclass(frozen=True)
class Measured:
    """An assignment and the accuracy it lost, in percent points."""

    assignment: Assignment
    drop: float


@dataclass(frozen=True)
class Search:
    """What a search measured, and what it settled on.

    Attributes:
        measured: Every measured assignment, the smallest first.
        chosen: The smallest measured one that holds the bound; where none does, the one with the
            least drop.
        holds: Whether ``chosen`` holds the bound.
    """

    measured: tuple[Measured, ...]
    chosen: Measured
    holds: bool


def layer_candidates(
    narrow: Sequence[LayerSensitivity], wide: Sequence[LayerSensitivity]
) -> list[LayerCandidates]:
    """Returns the candidates {scheme's width, 8 bits, float} of every layer, in graph order.

    Args:
        narrow: Measured at the scheme's own widths.
        wide: The same layers in the same order, measured at 8 bits.
    """
    found = []
    for low, high in zip(narrow, wide, strict=True):
        widths = [Candidate(low.weight_bits, low.grid_bytes, low.kl)]
        if high.weight_bits > low.weight_bits:
            widths.append(Candidate(high.weight_bits, high.grid_bytes, high.kl))
        widths.append(Candidate(None, bytes_of(low.num_weights, FLOAT_BITS), 0.0))
        found.append(LayerCandidates(low.nodes, tuple(widths)))
    return found


def frontier(layers: Sequence[LayerCandidates]) -> list[Assignment]:
    """Returns nested assignments from every layer at its narrowest to every layer in float.

    Each step widens one layer, the one with the steepest fall of KL per byte among the next steps
    of all layers' lower convex hulls: the solutions of min KL + lambda bytes over all lambda
    (Everett, Operations Research 11, 1963; Shoham and Gersho, IEEE ASSP 36, 1988). Bytes grow and
    predicted KL never rises from each assignment to the next.
    """
    hulls = [_lower_hull(layer.candidates) for layer in layers]
    steps = [
        (_slope(before, after), index, before, after)
        for index, hull in enumerate(hulls)
        for before, after in itertools.pairwise(hull)
    ]
    steps.sort(key=lambda step: step[0])  # stable: equal slopes of one layer stay in order
    widths = {node: hull[0].bits for layer, hull in zip(layers, hulls, strict=True)
              for node in layer.nodes}  # fmt: skip
    num_bytes = sum(hull[0].num_bytes for hull in hulls)
    path = [Assignment(widths, num_bytes, sum(hull[0].kl for hull in hulls))]
    for _, index, before, after in steps:
        last = path[-1]
        changed = dict.fromkeys(layers[index].nodes, after.bits)
        num_bytes = last.num_bytes + after.num_bytes - before.num_bytes
        path.append(
            Assignment({**last.widths, **changed}, num_bytes, last.kl + after.kl - before.kl)
        )
    return path


def cheapest_holding(
    path: Sequence[Assignment],
    measure: Callable[[Assignment], float],
    max_drop: float,
    *,
    most: int = MOST_MEASUREMENTS,
) -> Search:
    """Returns the cheapest assignment found on ``path`` whose measured drop holds ``max_drop``.

    Bisection: exact where the drop falls along the path, and where it does not, still the cheapest
    that was seen to hold. The all-float end is no answer, so it is not measured.

    Args:
        path: As `frontier` returns it, not empty.
        measure: Gives the drop of an assignment in percent points; called at most ``most`` times.
        max_drop: The bound in percent points.
        most: At least 2.
    """
    searched = [assignment for assignment in path if assignment.quantizes] or list(path[:1])
    drops: dict[int, float] = {}

    def holds(index: int) -> bool:
        drops[index] = measure(searched[index])
        return drops[index] <= max_drop

    low, high = 0, len(searched) - 1
    if not holds(low):
        while high - low > 1 and len(drops) < most - 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
        if high not in drops:
            holds(high)
    measured = tuple(Measured(searched[index], drops[index]) for index in sorted(drops))
    held = [each for each in measured if each.drop <= max_drop]
    chosen = held[0] if held else min(measured, key=lambda each: each.drop)
    return Search(measured, chosen, bool(held))


def _lower_hull(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Returns the candidates that minimise KL + lambda bytes for some lambda >= 0, by bytes."""
    hull: list[Candidate] = []
    for each in sorted(candidates, key=lambda candidate: (candidate.num_bytes, candidate.kl)):
        if hull and each.num_bytes == hull[-1].num_bytes:
            continue  # as large and no better
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) > _slope(hull[-1], each):
            hull.pop()
        hull.append(each)
    return hull


def _slope(before: Candidate, after: Candidate) -> float:
    """Returns nats per byte from one candidate to a larger one; below 0 if that does less harm."""
    return (after.kl - before.kl) / (after.num_bytes - before.num_bytes)
