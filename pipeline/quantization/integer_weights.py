"""One layer's weights as integers and scales: rounded by the kind of their grid, or left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fdda_deploy.pipeline.quantization.coupled_rows import couple_rows, coupled_loss
from fdda_deploy.pipeline.quantization.one_scale import round_with_one_scale
from fdda_deploy.pipeline.quantization.second_order import (
    MAX_EXACT_INPUTS,
    descend,
    nearest,
    round_columns,
    round_exact,
    scale_search,
)
from fdda_deploy.quant.qparams import QParams

COUPLED_BELOW = 8
"""Bits of weights below which rows are rounded together: of wider ones rounding takes little."""


@dataclass(frozen=True)
class IntegerWeights:
    """A rounded layer.

    Attributes:
        integers: ``(groups, rows, d)``, as floats.
        step: Their scales, of the same shape.
        before: Loss of nearest rounding on the grid that was there, in parts of that of no weights.
        after: Loss now.
    """

    integers: Tensor
    step: Tensor
    before: float
    after: float


def can_couple(qparams: QParams) -> bool:
    """Whether rows on such a grid are rounded together."""
    own_scales = qparams.axis is not None and qparams.block_size is None
    return own_scales and qparams.num_bits < COUPLED_BELOW


def fewest_lost(
    target: Tensor,
    hessian: Tensor,
    curvature: Tensor | None,
    scale: Tensor,
    qparams: QParams,
    sweeps: int,
) -> IntegerWeights:
    """Returns integers and scales of small loss, no larger than that of nearest rounding.

    Args:
        target: Weights to come near to, ``(groups, rows, d)``.
        hessian: ``(groups, d, d)``, of what they read.
        curvature: ``(rows, rows)``, of what they give; None where each row counts by itself.
        scale: Scales that the grid has, of the shape of ``target``.
        qparams: The grid.
        sweeps: Rounds of coordinate descent.
    """
    had = nearest(target, scale, qparams.qmin, qparams.qmax)
    integers, step = _rounded(target, hessian, scale, qparams, sweeps)
    if curvature is not None:
        integers, step = couple_rows(
            target, hessian, curvature, integers, step[:, :, :1], qparams.qmin, qparams.qmax
        )
        step = step.expand_as(target)
    before = coupled_loss(target - had * scale, hessian, curvature)
    after = coupled_loss(target - integers * step, hessian, curvature)
    together = qparams.axis is None or curvature is not None
    keep = keeps_old(before, after, together=together)
    after = torch.where(keep, before, after)
    keep = keep[:, :, None]
    size = float(coupled_loss(target, hessian, curvature).sum()) or 1.0  # dead weights lose nothing
    return IntegerWeights(
        torch.where(keep, had, integers),
        torch.where(keep, scale, step),
        float(before.sum()) / size,
        float(after.sum()) / size,
    )


def keeps_old(before: Tensor, after: Tensor, *, together: bool) -> Tensor:
    """Returns which rows ``(groups, rows)`` are no better for having been rounded anew.

    Rows that share a scale, or a loss, are kept or given up ``together``.
    """
    if together:
        worse = (before.sum() <= after.sum()) | ~after.sum().isfinite()
        return worse.expand(before.shape)
    return (before <= after) | ~after.isfinite()


def _rounded(
    target: Tensor, hessian: Tensor, scale: Tensor, qparams: QParams, sweeps: int
) -> tuple[Tensor, Tensor]:
    """Returns integers and scales of small loss, each row by itself, of the shape of ``target``."""
    qmin, qmax = qparams.qmin, qparams.qmax
    if qparams.block_size is not None:
        q = round_columns(target, hessian, scale, qmin, qmax)
        return descend(target, hessian, q, scale, qmin, qmax, sweeps=sweeps, learn_scale=False)
    if qparams.axis is None:
        q, step = round_with_one_scale(target, hessian, qmin, qmax, sweeps=sweeps)
        return q, step.expand_as(target)
    if target.shape[1] == 1 and target.shape[2] <= MAX_EXACT_INPUTS:
        q, step = round_exact(target, hessian, qmin, qmax)
    else:
        step = scale_search(target, hessian, qmin, qmax)
        q = round_columns(target, hessian, step, qmin, qmax)
    q, step = descend(target, hessian, q, step, qmin, qmax, sweeps=sweeps)
    return q, step.expand_as(target)
