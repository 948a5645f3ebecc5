"""Activations of one shape on one scale, as the placement of a compact plan asks for."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np

from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.quant.sharing import shared_scales


def share_scales(network: QuantNetwork) -> int:
    """Gives tensors that share the largest of their scales, in place; returns how many moved.

    Scales that differ too much stay apart, as `quant.sharing.shared_scales` has it.

    Args:
        network: Calibrated.

    Raises:
        CalibrationError: A tensor has no grid yet.
    """
    grids, moved = network.activation_qparams(), 0
    for tensors in _groups(network).values():
        scales = {tensor: float(grids[tensor].scale) for tensor in tensors}
        for tensor, scale in shared_scales(scales).items():
            if scale != scales[tensor]:
                shared = dataclasses.replace(grids[tensor], scale=np.asarray(scale, np.float32))
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
