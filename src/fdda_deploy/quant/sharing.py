"""Scales that several tensors share: the largest of theirs, while none gets much coarser for it."""

from __future__ import annotations

import math
from collections.abc import Mapping

MOST_COARSENED = 2.5
"""A tensor takes a scale up to this times its own. The sums of a residual chain, which only one
factor can scale, differ most: in mobilenet_v2 by 2.0 and 2.6. On 64 photographs L2 and KL were
0.070 and 0.0061 with the wider pair apart (plan 0.411 of float), 0.084 and 0.0083 with both
together (0.402), 0.071 and 0.0069 with both apart (0.430): benchmarks/compact_plan.py."""


def shared_scales(
    scales: Mapping[str, float], most: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Returns the scale that each tensor of one set takes: one of ``scales``, never a smaller one.

    Where scales differ by more than `MOST_COARSENED`, they part there: from the largest down, each
    tensor joins the one before it if that coarsens it by no more.

    Args:
        scales: By tensor, positive.
        most: The largest scale that a tensor may take, where that is another.

    Example:
        >>> shared_scales({"a": 1.0, "b": 0.5, "c": 0.25, "d": 0.125})
        {'a': 1.0, 'b': 1.0, 'c': 0.25, 'd': 0.25}
    """
    largest = {tensor: MOST_COARSENED * scale for tensor, scale in scales.items()} | dict(
        most or {}
    )
    found: dict[str, float] = {}
    taken = math.inf
    for tensor in sorted(scales, key=lambda name: -scales[name]):
        if taken > largest[tensor]:
            taken = scales[tensor]
        found[tensor] = taken
    return found
