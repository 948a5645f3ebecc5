"""Weights whose channels all share one scale: its choice, and their rounding in closed form."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fdda_deploy.pipeline.quantization.observers import weight_qparams
from fdda_deploy.pipeline.quantization.second_order import (
    NUM_SCALES,
    SCALE_RANGE,
    descend,
    nearest,
    round_columns,
    row_loss,
)
from fdda_deploy.quant.qparams import SMALLEST_SCALE, QParams


def one_scale_qparams(weight: npt.NDArray[np.float32], num_bits: int) -> QParams:
    """Returns the symmetric grid of least L_2.4 error for a whole weight, of any shape.

    Args:
        weight: Float32.
        num_bits: 2 to 8.
    """
    found = weight_qparams(weight.reshape(1, -1), num_bits, axis=0)
    return QParams(found.scale[0], found.qmin, found.qmax)


def round_with_one_scale(
    weight: Tensor, hessian: Tensor, qmin: int, qmax: int, *, sweeps: int
) -> tuple[Tensor, Tensor]:
    """Returns integers ``(groups, rows, d)`` and their one scale ``()``, of small loss in all.

    What `second_order` does row by row, with the losses of all rows added up: a search of the scale
    under nearest rounding, GPTQ's rounding, and by turns the scale of least loss for the integers,
    ``s = sum q^T H w / sum q^T H q``, and coordinate descent. What is best of all turns stays.

    Args:
        weight: ``(groups, rows, d)``.
        hessian: ``(groups, d, d)``.
        qmin: Smallest integer.
        qmax: Largest integer.
        sweeps: Turns.
    """
    step = _searched(weight, hessian, qmin, qmax)
    integers = round_columns(weight, hessian, _rows(step, weight), qmin, qmax)
    best = _loss(weight, hessian, integers, step), integers, step
    for _ in range(sweeps):
        step = _fitted(weight, hessian, integers, step)
        integers, _ = descend(
            weight,
            hessian,
            integers,
            _rows(step, weight),
            qmin,
            qmax,
            sweeps=1,
            learn_scale=False,
        )
        loss = _loss(weight, hessian, integers, step)
        if not loss < best[0]:
            break
        best = loss, integers, step
    return best[1], best[2]


def grid_with(qparams: QParams, step: Tensor) -> QParams:
    """Returns the grid with new scales.

    Args:
        qparams: One scale, or one per channel.
        step: ``(groups, rows, d)``, the same along d, or everywhere.
    """
    found = step[:, :, 0].flatten().cpu().numpy()
    scale = found if qparams.axis is not None else found[0]
    return QParams(scale, qparams.qmin, qparams.qmax, qparams.axis)


def _rows(step: Tensor, weight: Tensor) -> Tensor:
    return step.expand(*weight.shape[:2], 1)


def _loss(weight: Tensor, hessian: Tensor, integers: Tensor, step: Tensor) -> float:
    return float(row_loss(weight - integers * step, hessian).sum())


def _searched(weight: Tensor, hessian: Tensor, qmin: int, qmax: int) -> Tensor:
    """Returns the scale ``()`` of least loss under nearest rounding."""
    cover = (weight.abs().amax() / qmax).clamp_min(SMALLEST_SCALE)
    candidates: list[Tensor] = [
        cover * factor for factor in torch.linspace(*SCALE_RANGE, NUM_SCALES).tolist()
    ]
    losses = [
        _loss(weight, hessian, nearest(weight, scale, qmin, qmax), scale) for scale in candidates
    ]
    return candidates[int(np.argmin(losses))]


def _fitted(weight: Tensor, hessian: Tensor, integers: Tensor, step: Tensor) -> Tensor:
    product = integers @ hessian
    top, bottom = (product * weight).sum(), (product * integers).sum()
    found = top / bottom
    chosen: Tensor = torch.where((bottom > 0) & (found > SMALLEST_SCALE), found, step)
    return chosen
