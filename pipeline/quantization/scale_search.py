"""Scales of one layer by the cosine between its quantized and its float output (EasyQuant)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_CANDIDATES = 100
SEARCH_RANGE = (0.5, 2.0)
"""Candidates per search, and their range in units of the calibrated scale (EasyQuant, sec. 3)."""
_ASCENTS = 8
_SCAN = 64
_CHUNK = 2**22
"""Elements of candidate weights that are held at a time."""


@dataclass
class LayerSample:
    """One convolution or linear layer as a product of matrices, at sampled output positions.

    Attributes:
        x: ``(groups, positions, fan_in)`` float32, the layer's float inputs.
        wanted: ``(groups, positions, channels)``, the float network's outputs without the bias.
        weight: ``(groups, channels, fan_in)`` float weights; channels are those of one group.
        start: ``(groups, channels, 1)``, the calibrated scales; candidates are shares of these.
        scale: The same, as chosen so far.
        qmin: Smallest integer of the weights.
        qmax: Largest integer of the weights.
        searchable: The weight scales are free to change.
    """

    x: Tensor
    wanted: Tensor
    weight: Tensor
    start: Tensor
    scale: Tensor
    qmin: int
    qmax: int
    searchable: bool = True

    @property
    def weight_q(self) -> Tensor:
        """The weights on their grid."""
        return on_grid(self.weight, self.scale, self.qmin, self.qmax)


def cosine(wanted: Tensor, found: Tensor) -> float:
    """Returns ``<a, b> / (|a| |b|)`` over all elements, 0 where one is all zeros."""
    dot = float((wanted * found).sum(dtype=torch.float64))
    norms = float(wanted.double().norm() * found.double().norm())
    return dot / norms if norms > 0 else 0.0


def layer_cosine(layer: LayerSample, x_q: Tensor) -> float:
    """Returns the cosine of the layer's output on quantized inputs ``x_q``, shaped as ``x``."""
    return cosine(layer.wanted, x_q @ layer.weight_q.mT)


def search_weight_scales(layer: LayerSample, x_q: Tensor) -> None:
    """Gives ``layer`` the per-channel scales that raise its cosine most; it never falls.

    The output is one vector over positions and channels, so the channels hang together through its
    length alone. With d_c = <o_c, y_c> and e_c = |y_c|^2 of channel c, D and E their sums,
    cos^2 = D^2 / (E |o|^2) = max over t of (2 t D - t^2 E) / |o|^2. For a given t each channel
    takes the candidate of largest 2 t d_c - t^2 e_c by itself, so the best of all combinations is
    found by a search over t alone: a scan, then t = D / E and the choices in turn.

    Args:
        layer: Its ``scale`` is changed.
        x_q: Inputs as the layer reads them, shaped as ``layer.x``.
    """
    if not layer.searchable:
        return
    candidates = torch.cat([layer.scale, layer.start * _factors(layer.start)], dim=2)
    dots, energies = _outcomes(layer, x_q, candidates)
    choice = torch.zeros_like(dots[..., 0], dtype=torch.long)
    best = _picked(dots, choice), _picked(energies, choice)
    if best[0] <= 0 or best[1] <= 0:
        return
    t = _scanned(dots, energies, best[0] / best[1])
    for _ in range(_ASCENTS):
        next_choice = (2 * t * dots - t**2 * energies).argmax(dim=2)
        found = _picked(dots, next_choice), _picked(energies, next_choice)
        if not found[0] / found[1] ** 0.5 > best[0] / best[1] ** 0.5:
            break
        best, choice, t = found, next_choice, found[0] / found[1]
    layer.scale = candidates.gather(2, choice[..., None])


def search_activation_scale(
    layers: list[LayerSample], start: float, current: float, qmin: int, qmax: int
) -> float:
    """Returns the input scale of largest mean cosine over the layers that read the tensor.

    Args:
        layers: All readers.
        start: The calibrated scale; candidates are shares of it.
        current: The scale so far, kept unless another one is better.
        qmin: Smallest integer of the tensor.
        qmax: Largest integer of the tensor.
    """
    factors = _factors(torch.ones(1)).flatten().tolist()
    weights = [layer.weight_q.mT.contiguous() for layer in layers]
    best = -2.0
    chosen = current
    for scale in [current, *(start * factor for factor in factors)]:
        total = 0.0
        for layer, weight_q in zip(layers, weights, strict=True):
            x_q = on_grid(layer.x, scale, qmin, qmax)
            total += cosine(layer.wanted, x_q @ weight_q)
        if total / len(layers) > best:
            best, chosen = total / len(layers), scale
    return chosen


def on_grid(x: Tensor, scale: Tensor | float, qmin: int, qmax: int) -> Tensor:
    """Returns ``x`` rounded to a grid whose ``scale`` broadcasts over it."""
    return (x / scale).round_().clamp_(qmin, qmax).mul_(scale)


def _factors(like: Tensor) -> Tensor:
    low, high = SEARCH_RANGE
    return torch.linspace(low, high, NUM_CANDIDATES, device=like.device)


def _scanned(dots: Tensor, energies: Tensor, start: float) -> float:
    """Returns the t, of `_SCAN` around ``start``, whose free choices reach furthest."""
    tried = [start * float(share) for share in torch.linspace(*SEARCH_RANGE, _SCAN)]
    reached = [float((2 * t * dots - t**2 * energies).amax(dim=2).sum()) for t in tried]
    return tried[reached.index(max(reached))]


def _picked(values: Tensor, choice: Tensor) -> float:
    return float(values.gather(2, choice[..., None]).sum())


def _outcomes(layer: LayerSample, x_q: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Returns d_c and e_c of every candidate, both ``(groups, channels, candidates)`` float64.

    With y = x w, and dw what rounding adds to w: d = <o, y> + <x^T o, dw> and
    e = |y|^2 + 2 <x^T y, dw> + |x dw|^2, so that float32 rounds only the small terms. |x dw|^2 is
    dw^T (x^T x) dw where the fan-in is smaller than the number of positions.
    """
    y = x_q @ layer.weight.mT
    dot = (layer.wanted * y).sum(dim=1, dtype=torch.float64)
    energy = y.square().sum(dim=1, dtype=torch.float64)
    x_o, x_y = layer.wanted.mT @ x_q, y.mT @ x_q
    _, positions, fan_in = x_q.shape
    gram = x_q.mT @ x_q if fan_in <= positions else None
    columns = max(1, _CHUNK // (layer.weight.numel() + layer.wanted.numel()))
    dots, energies = [], []
    for part in torch.split(candidates, columns, dim=2):
        weight = layer.weight[:, :, None]
        delta = on_grid(weight, part[..., None], layer.qmin, layer.qmax).sub_(weight)
        flat = delta.flatten(1, 2)
        if gram is not None:
            extra = ((flat @ gram) * flat).sum(dim=2)
        else:
            extra = (x_q @ flat.mT).square_().sum(dim=1)
        dots.append(dot[..., None] + torch.einsum("gcjk,gck->gcj", delta, x_o))
        linear = torch.einsum("gcjk,gck->gcj", delta, x_y)
        energies.append(energy[..., None] + 2 * linear + extra.reshape(delta.shape[:3]))
    return torch.cat(dots, dim=2), torch.cat(energies, dim=2)
