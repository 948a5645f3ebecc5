"""Rows of a layer rounded for what they cost together: each makes good what the others do.

With the curvature ``H (d, d)`` of the inputs and ``G (rows, rows)`` of the outputs, rounding errors
``E (rows, d)`` cost ``tr(G E H E^T)``. For row i, the others fixed, that is ``G_ii e^T H e`` with
``e = E_i + sum_{k != i} G_ik / G_ii E_k``: the row's own problem with another target. So what
rounds a row by itself rounds it beside the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fdda_deploy.pipeline.quantization.second_order import descend, row_loss

_TURNS = 2
_MOST_PARTS, _FEWEST_PARTS = 32, 4
"""Into so many parts rows are divided, those of a part descending at once: the more, the better
each sees the others, and the more often all columns are walked."""
_COLUMNS_A_TURN = 2**14
_LEAST_GAIN = 0.005
"""Share of the loss that a turn must take for another to follow."""


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

    Every 32nd row at a time, fewer times in layers of many inputs, descends from where it was
    towards what makes good the errors of the others; so twice around. Rows whose change does not
    lower the loss of all stay.

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
    least = _LEAST_GAIN * float(coupled_loss(error, hessian, curvature).sum())
    parts = min(_MOST_PARTS, max(_FEWEST_PARTS, _COLUMNS_A_TURN // weight.shape[2]))
    for _ in range(_TURNS):
        gained = 0.0
        for first in range(min(parts, weight.shape[1])):
            rows = slice(first, None, parts)
            pull = curvature[rows] @ error[0]
            target = weight[:, rows] - error[:, rows] + pull / own[rows, None]
            q, s = descend(target, hessian, found[:, rows], step[:, rows], qmin, qmax, sweeps=1)
            change = (weight[:, rows] - q * s - error[:, rows])[0]
            pushed = change @ hessian[0]
            taken, gain = _worth_it(
                2 * (pull * pushed).sum(dim=1), curvature[rows, rows] * (pushed @ change.mT)
            )
            gained += gain
            keep = taken.to(q.device)[None, :, None]
            found[:, rows] = torch.where(keep, q, found[:, rows])
            step[:, rows] = torch.where(keep, s, step[:, rows])
            error[:, rows] += torch.where(keep, change, 0.0)
        if gained <= least:
            break
    return found, step


def _worth_it(alone: Tensor, between: Tensor) -> tuple[Tensor, float]:
    """Returns which changes are made ``(n,)``, on the CPU, and by how much that lowers the loss.

    Rows that change at once may all make good the same error. So one by one, each is taken if it
    lowers the loss beside those taken before it.

    Args:
        alone: What each change does to the loss by the errors that are there, ``(n,)``.
        between: What two changes do together, ``(n, n)``.
    """
    alone, between = alone.double().cpu(), between.double().cpu()
    taken, total = torch.zeros(len(alone), dtype=torch.bool), 0.0
    for row in range(len(alone)):
        beside = float(alone[row] + between[row, row] + 2 * between[row, taken].sum())
        if beside < 0:
            taken[row], total = True, total - beside
    return taken, total
