"""Rows of a layer rounded for what they cost together: each makes good what the others do.

With the curvature ``H (d, d)`` of the inputs and ``G (rows, rows)`` of the outputs, rounding errors
``E (rows, d)`` cost ``tr(G E H E^T)``. For one row, the others fixed, that is ``G_ii e^T H e`` with
``e = E_i + sum_k G_ik / G_ii E_k``: the row's own problem with another target. So all that rounds a
row by itself rounds it beside the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fdda_deploy.pipeline.quantization.second_order import descend, row_loss

_PARTS = 32
"""Rows that are rounded at once, as if they did not touch each other: every 32nd."""
_TURNS = 2
_SWEEPS = 1


def coupled_loss(error: Tensor, hessian: Tensor, curvature: Tensor | None) -> Tensor:
    """Returns what each row adds to ``tr(G E H E^T)``, ``(groups, rows)``; below 0 if it helps.

    Args:
        error: ``(groups, rows, d)``; one group where there is a curvature.
        hessian: ``(groups, d, d)``.
        curvature: ``(rows, rows)``; None for ``e^T H e`` of each row by itself.
    """
    if curvature is None:
        return row_loss(error, hessian)
    return ((curvature @ error[0]) * (error[0] @ hessian[0])).sum(dim=1)[None]


def couple_rows(
    weight: Tensor,
    hessian: Tensor,
    curvature: Tensor,
    integers: Tensor,
    scale: Tensor,
    qmin: int,
    qmax: int,
) -> tuple[Tensor, Tensor]:
    """Returns integers and scales ``(1, rows, 1)`` of no larger loss in all.

    Every 32nd row at a time descends from where it was towards what makes good the errors of the
    others, twice around. What does not lower the loss is not kept.

    Args:
        weight: ``(1, rows, d)``.
        hessian: ``(1, d, d)``.
        curvature: ``(rows, rows)``.
        integers: The start, ``(1, rows, d)``.
        scale: The start, ``(1, rows, 1)``.
        qmin: Smallest integer.
        qmax: Largest integer.
    """
    own = curvature.diagonal().clamp_min(torch.finfo(curvature.dtype).tiny)
    found, step = integers.clone(), scale.clone()
    error = weight - found * step
    parts = min(_PARTS, weight.shape[1])
    for turn in range(_TURNS * parts):
        rows = slice(turn % parts, None, parts)
        pull = curvature[rows] @ error[0]
        target = weight[:, rows] - error[:, rows] + pull / own[rows, None]
        q, s = descend(target, hessian, found[:, rows], step[:, rows], qmin, qmax, sweeps=_SWEEPS)
        changed = weight[:, rows] - q * s
        change = (changed - error[:, rows])[0]
        # Rows of one turn may touch each other after all: what this adds to the loss of all.
        push = 2 * pull + curvature[rows, rows] @ change
        if float((push * (change @ hessian[0])).sum()) < 0:
            found[:, rows], step[:, rows], error[:, rows] = q, s, changed
    return found, step
