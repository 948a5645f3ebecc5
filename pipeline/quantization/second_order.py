"""Rounding a layer's weights for the least error of its outputs, in closed form.

All functions take the weights as ``(groups, rows, d)``: one row per output channel, d the inputs it
reads, and the curvature ``H (groups, d, d)`` of the squared output error, which is the covariance
of the inputs. The loss of a row is ``e^T H e`` with e what rounding takes from it.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from fdda_deploy.pipeline.quantization.moments import LayerMoments

NUM_SCALES = 40
SCALE_RANGE = (1.0, 0.35)
"""Candidates of `scale_search`, as shares of the scale that covers the largest weight."""
NUM_EXACT_SCALES = 48
EXACT_SCALE_RANGE = (1.15, 0.4)
"""The same for `round_exact`, which may also leave room above the largest weight."""
MAX_EXACT_INPUTS = 9
_COLUMNS = 64
"""Columns that are rounded before what they hand on reaches the columns behind them."""
_RETRIES = 3
_MORE_DAMPING = 0.1
_CHUNK = 2**22
"""Losses that `round_exact` holds at a time."""
_SMALLEST_AMAX = 1e-12


def row_loss(error: Tensor, hessian: Tensor) -> Tensor:
    """Returns ``e^T H e`` of every row, ``(groups, rows)``, of errors ``(groups, rows, d)``."""
    return ((error @ hessian) * error).sum(dim=2)


def nearest(weight: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
    """Returns the nearest integers, ``clip(round(w / s), qmin, qmax)``, as floats."""
    return (weight / scale).round_().clamp_(qmin, qmax)


def damped(covariance: Tensor, damping: float) -> Tensor:
    """Returns ``C + damping mean(diag C) I`` in float32, the curvature that rounding works with.

    A group whose inputs never vary gets a multiple of I: its weights round to nearest.

    Args:
        covariance: ``(groups, d, d)``.
        damping: 0.01 in GPTQ (arXiv 2210.17323, section 3.3).
    """
    found = covariance.to(torch.float32, copy=True)
    found.diagonal(dim1=1, dim2=2).add_((damping * _size(covariance)).float()[:, None])
    return found


def scale_search(weight: Tensor, hessian: Tensor, qmin: int, qmax: int) -> Tensor:
    """Returns each row's scale, ``(groups, rows, 1)``, of least loss under nearest rounding.

    40 candidates between 1 and 0.35 times the scale at which qmax is the largest weight.

    Args:
        weight: ``(groups, rows, d)``.
        hessian: ``(groups, d, d)``.
        qmin: Smallest integer.
        qmax: Largest integer.
    """
    cover = _cover(weight, qmax)
    best, chosen = torch.full_like(cover, torch.inf), cover
    for factor in torch.linspace(*SCALE_RANGE, NUM_SCALES).tolist():
        scale = cover * factor
        error = nearest(weight, scale, qmin, qmax).mul_(scale).sub_(weight)
        loss = row_loss(error, hessian)[:, :, None]
        better = loss < best
        best, chosen = torch.where(better, loss, best), torch.where(better, scale, chosen)
    return chosen


def round_columns(weight: Tensor, hessian: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
    """Returns integers ``(groups, rows, d)``: each column's error is spread over those behind it.

    OBQ with the order of GPTQ (arXiv 2208.11580, eq. 2; 2210.17323, algorithm 1): columns by
    falling diagonal of H; ``e = (w_i - Q(w_i)) / U_ii`` and ``w_j -= e U_ij`` for ``j > i``, U the
    upper Cholesky factor of ``H^-1``. A group whose H cannot be factored is damped more, tenfold
    each time, and after three times rounds to nearest.

    Args:
        weight: ``(groups, rows, d)``.
        hessian: ``(groups, d, d)``.
        scale: ``(groups, rows, 1)``, or ``(groups, rows, d)`` with a scale for each input.
        qmin: Smallest integer.
        qmax: Largest integer.
    """
    rows, d = weight.shape[1:]
    order = hessian.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    across = order[:, None, :]
    ordered = hessian.gather(1, order[:, :, None].expand(-1, -1, d))
    factor = inverse_factor(ordered.gather(2, across.expand(-1, d, -1)))
    down = order[:, :, None].expand(-1, -1, rows)  # columns are rows from here on: contiguous
    left = weight.mT.gather(1, down)
    steps = scale.expand_as(weight).mT.gather(1, down)
    integers = torch.empty_like(left)
    for first in range(0, d, _COLUMNS):
        last = min(first + _COLUMNS, d)
        spread = torch.empty_like(left[:, first:last])
        for j in range(first, last):
            q = (left[:, j] / steps[:, j]).round_().clamp_(qmin, qmax)
            error = (left[:, j] - q * steps[:, j]) / factor[:, j, j, None]
            integers[:, j], spread[:, j - first] = q, error
            handed_on = factor[:, j, j + 1 : last, None] * error[:, None]
            left[:, j + 1 : last].sub_(handed_on)
        left[:, last:].sub_(factor[:, first:last, last:].mT @ spread)
    return torch.empty_like(integers).scatter_(1, down, integers).mT.contiguous()


def inverse_factor(hessian: Tensor) -> Tensor:
    """Returns the upper U with ``U^T U = H^-1``, ``(groups, d, d)`` float32, computed in float64.

    With the axes reversed, ``H = L L^T`` and U is ``L^-1`` turned back: one factorization, and H is
    never inverted. Where even ten times the mean diagonal on top does not make H positive definite,
    U is the identity, which spreads nothing.
    """
    flipped = hessian.double().flip(1, 2)
    size = flipped.diagonal(dim1=1, dim2=2).mean(dim=1)
    lower, info = torch.linalg.cholesky_ex(flipped)
    for attempt in range(_RETRIES):
        if not bool(info.any()):
            break
        extra = torch.where(info != 0, _MORE_DAMPING * 10**attempt * size, 0.0)
        more = flipped + torch.diag_embed(extra[:, None].expand(flipped.shape[:2]))
        again, still = torch.linalg.cholesky_ex(more)
        lower = torch.where((info != 0)[:, None, None], again, lower)
        info = torch.where(info != 0, still, info)
    identity = torch.eye(flipped.shape[1], dtype=flipped.dtype, device=flipped.device)
    lower = torch.where((info != 0)[:, None, None], identity, lower)
    inverse: Tensor = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
    return inverse.flip(1, 2).float()


def descend(
    weight: Tensor,
    hessian: Tensor,
    integers: Tensor,
    scale: Tensor,
    qmin: int,
    qmax: int,
    *,
    sweeps: int = 4,
    learn_scale: bool = True,
) -> tuple[Tensor, Tensor]:
    """Returns integers and scales of no larger loss, by coordinate descent.

    By turns the scale of least loss for the integers, ``s = q^T H w / q^T H q``, and for each input
    in turn the integer of least loss, ``q_j + (H e)_j / (H_jj s)`` rounded, with all else fixed.
    Ends when no integer changes. A row that float32 would leave worse stays as it was.

    Args:
        weight: ``(groups, rows, d)``.
        hessian: ``(groups, d, d)``.
        integers: The start, ``(groups, rows, d)``; not written to.
        scale: The start, ``(groups, rows, 1)``, or ``(groups, rows, d)`` with fixed scales.
        qmin: Smallest integer.
        qmax: Largest integer.
        sweeps: At most so many turns.
        learn_scale: Whether scales change; they must be one per row.
    """
    columns, step = integers.mT.clone(memory_format=torch.contiguous_format), scale
    for _ in range(sweeps):
        if learn_scale:
            step = fitted_scale(weight, hessian, columns.mT, step)
        if not _sweep(weight, hessian, columns, step, qmin, qmax):
            break
    found = columns.mT.contiguous()
    before = row_loss(weight - integers * scale, hessian)
    better = (row_loss(weight - found * step, hessian) < before)[:, :, None]
    return torch.where(better, found, integers), torch.where(better, step, scale)


def fitted_scale(weight: Tensor, hessian: Tensor, integers: Tensor, scale: Tensor) -> Tensor:
    """Returns ``q^T H w / q^T H q`` of each row; ``scale`` where that is not above 0."""
    product = integers @ hessian
    top = (product * weight).sum(dim=2, keepdim=True)
    bottom = (product * integers).sum(dim=2, keepdim=True)
    found = top / bottom
    return torch.where((bottom > 0) & (found > _SMALLEST_AMAX / 128), found, scale)


def round_exact(weight: Tensor, hessian: Tensor, qmin: int, qmax: int) -> tuple[Tensor, Tensor]:
    """Returns integers ``(groups, 1, d)`` and scales ``(groups, 1, 1)`` of least loss of all tried.

    For each of 48 scales all ``2^d`` ways to round up or down. With e what rounding down leaves and
    b the inputs rounded up, the loss is ``e^T H e - 2 s b^T H e + s^2 b^T H b``.

    Args:
        weight: ``(groups, 1, d)``, d at most 9: a depthwise filter.
        hessian: ``(groups, d, d)``.
        qmin: Smallest integer.
        qmax: Largest integer.
    """
    d = weight.shape[2]
    assert weight.shape[1] == 1
    assert d <= MAX_EXACT_INPUTS
    ways = torch.tensor(list(itertools.product((0.0, 1.0), repeat=d)), device=weight.device)
    size = max(1, _CHUNK // (NUM_EXACT_SCALES * len(ways)))
    parts = [
        _exact(w, h, ways, qmin, qmax)
        for w, h in zip(torch.split(weight, size), torch.split(hessian, size), strict=True)
    ]
    integers, scales = zip(*parts, strict=True)
    return torch.cat(integers), torch.cat(scales)


def target_weights(weight: Tensor, moments: LayerMoments, ridge: float) -> Tensor:
    """Returns the weights W' by which a layer makes good what the layers before it lost.

    ``argmin |W x - W' x_hat|^2 + ridge lambda |W' - W|^2``, x and x_hat around their means, lambda
    the mean variance of x_hat: ``W' = (W cov(x, x_hat) + ridge lambda W) (cov(x_hat, x_hat) + ridge
    lambda I)^-1``. A group that cannot be solved keeps W.

    Args:
        weight: ``(groups, rows, d)`` float32.
        moments: The layer's.
        ridge: 0 trusts the samples alone; towards infinity, W' is W.
    """
    pull = (ridge * _size(moments.cov_xhat))[:, None, None]
    identity = torch.eye(weight.shape[2], dtype=pull.dtype, device=pull.device)
    wanted = weight.double()
    right = wanted @ moments.cov_x_xhat + pull * wanted
    lower, info = torch.linalg.cholesky_ex(moments.cov_xhat + pull * identity)
    solvable = (info == 0)[:, None, None]
    found = torch.cholesky_solve(right.mT, torch.where(solvable, lower, identity)).mT
    return torch.where(solvable, found, wanted).float()


def mean_shift(weight: Tensor, weight_q: Tensor, moments: LayerMoments) -> Tensor:
    """Returns what the bias must gain, ``W mean(x) - W_q mean(x_hat)``, ``(groups, rows)`` float32.

    Bias correction with measured means (Nagel et al., arXiv 1906.04721, section 4.2).
    """
    wanted = weight.double() @ moments.mean_x[:, :, None]
    found = weight_q.double() @ moments.mean_xhat[:, :, None]
    return (wanted - found)[:, :, 0].float()


def _size(covariance: Tensor) -> Tensor:
    """Returns the mean variance of each group, ``(groups,)``; 1 where nothing varies."""
    size = covariance.diagonal(dim1=1, dim2=2).mean(dim=1)
    return torch.where(size > 0, size, 1.0)


def _cover(weight: Tensor, qmax: int) -> Tensor:
    return weight.abs().amax(dim=2, keepdim=True).clamp_min(_SMALLEST_AMAX) / qmax


def _sweep(
    weight: Tensor, hessian: Tensor, columns: Tensor, scale: Tensor, qmin: int, qmax: int
) -> bool:
    """Gives every input in turn its best integer, in place; returns whether one changed.

    ``columns`` are the integers ``(groups, d, rows)``: those of one input lie side by side.
    """
    d = weight.shape[2]
    steps = scale.expand_as(weight).mT
    curvature = hessian.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(torch.float32).tiny)
    pull = hessian @ (weight.mT - columns * steps)
    moved = False
    for first in range(0, d, _COLUMNS):
        last = min(first + _COLUMNS, d)
        near, here = hessian[:, first:last, first:last], pull[:, first:last].clone()
        changes = torch.empty_like(here)
        for j in range(last - first):
            old, step = columns[:, first + j], steps[:, first + j]
            wish = old + here[:, j] / (curvature[:, first + j, None] * step)
            new = wish.round_().clamp_(qmin, qmax)
            changes[:, j] = (new - old) * step
            columns[:, first + j] = new
            here.sub_(near[:, :, j, None] * changes[:, None, j])
        pull.sub_(hessian[:, :, first:last] @ changes)
        moved |= bool(changes.any())
    return moved


def _exact(
    weight: Tensor, hessian: Tensor, ways: Tensor, qmin: int, qmax: int
) -> tuple[Tensor, Tensor]:
    """`round_exact` of as many groups as fit in memory."""
    factors = torch.linspace(*EXACT_SCALE_RANGE, NUM_EXACT_SCALES, device=weight.device)
    scale = _cover(weight, qmax) * factors[:, None]  # (groups, scales, 1)
    down = torch.floor(weight / scale)
    low = down.clamp(qmin, qmax)
    fixed = (down + 1).clamp_(qmin, qmax) == low  # up is outside the grid
    error = weight - low * scale
    pull = error @ hessian
    loss = (pull * error).sum(dim=2, keepdim=True) - 2 * scale * (pull @ ways.T)
    loss += scale.square() * row_loss(ways.expand(len(weight), -1, -1), hessian)[:, None]
    loss.masked_fill_((fixed.float() @ ways.T) > 0, torch.inf)
    best = loss.flatten(1).argmin(dim=1)
    group = torch.arange(len(weight), device=weight.device)
    at, way = best // len(ways), best % len(ways)
    return (low[group, at] + ways[way])[:, None], scale[group, at][:, None]
