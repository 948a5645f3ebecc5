"""Activations of one shape on one scale, as the placement of a compact plan asks for."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from fdda_deploy.pipeline.quantization.convert import QuantNetwork

MOST_COARSENED = 2.5
"""A tensor takes a scale up to this times its own. The sums of a residual chain, which only one
factor can scale, differ most: in mobilenet_v2 by 2.0 and 2.6. On 64 photographs L2 and KL were
0.070 and 0.0061 with the wider pair apart (plan 0.411 of float), 0.084 and 0.0083 with both
together (0.402), 0.071 and 0.0069 with both apart (0.430): benchmarks/compact_plan.py."""


def share_scales(network: QuantNetwork) -> int:
    """Gives tensors that share the largest of their scales, in place; returns how many moved.

    Where scales differ by more than `MOST_COARSENED`, they part there: from the largest down, each
    tensor joins the one before it if that coarsens it by no more.

    Args:
        network: Calibrated.

    Raises:
        CalibrationError: A tensor has no grid yet.
    """
    grids, moved = network.activation_qparams(), 0
    for tensors in _groups(network).values():
        ordered = sorted(tensors, key=lambda name: -float(grids[name].scale))
        scale = grids[ordered[0]].scale
        for tensor in ordered:
            grid = grids[tensor]
            if float(scale) > MOST_COARSENED * float(grid.scale):
                scale = grid.scale
            if float(scale) != float(grid.scale):
                shared = dataclasses.replace(grid, scale=scale)
                network.activation_quantizers[tensor].set_qparams(shared)
                moved += 1
    return moved


def sharing_tensors(network: QuantNetwork) -> list[tuple[str, ...]]:
    """Returns the sets of tensors, two or more each, that have one scale and are to keep it."""
    grids = network.activation_qparams()
    found: dict[tuple[str, float], list[str]] = defaultdict(list)
    for name, tensors in _groups(network).items():
        for tensor in tensors:
            found[name, float(grids[tensor].scale)].append(tensor)
    return [tuple(tensors) for tensors in found.values() if len(tensors) > 1]


def _groups(network: QuantNetwork) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for point in network.placement.activations:
        if point.shares:
            groups[point.shares].append(point.name)
    return groups
