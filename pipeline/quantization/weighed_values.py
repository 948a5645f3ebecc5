"""Samples of a tensor's values, each with what the prediction would lose by an error there."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from fdda_deploy.pipeline.quantization.fisher import Done, Watch, differentiate
from fdda_deploy.pipeline.quantization.observers import bin_centers, binned
from fdda_deploy.pipeline.quantization.ranges import Histogram
from fdda_deploy.quant.qparams import SMALLEST_SCALE

SAMPLES_PER_IMAGE = 32
_GOLDEN = 0.6180339887498949
_MOST = 100.0


@dataclass(frozen=True)
class WeighedValues:
    """Values of one tensor, channel by channel.

    Attributes:
        values: ``(C, samples)`` float32.
        weights: ``(C, samples)`` float16, 0 or more; about 1 in the mean of a tensor.
        low: Smallest of all values of the images, sampled or not.
        high: Largest.
    """

    values: Tensor
    weights: Tensor
    low: float
    high: float

    def histogram(self, shifted: bool = False) -> Histogram:
        """Returns the distribution of all channels' values, each counting its weight.

        Args:
            shifted: 8-bit grids may have any zero-point.
        """
        limit = max(-self.low, self.high, SMALLEST_SCALE * 256)
        counts = binned(self.values, limit, weights=self.weights).numpy()
        return Histogram(bin_centers(limit), counts, self.low, self.high, shifted, weighed=True)


def weighed_values(
    module: fx.GraphModule,
    names: Collection[str],
    batches: Iterable[Tensor],
    *,
    seed: int = 0,
    done: Done | None = None,
) -> dict[str, WeighedValues]:
    """Samples every channel of the named nodes at spread-out positions of every image.

    A value's weight is its Fisher information, ``(d log p(y) / d value)^2``
    (`fisher.differentiate`), over its image's mean in this tensor, so that each image counts alike
    (`importance.output_importance` says why), at most 100. Nothing is added to it: where every
    value counts 0.1 besides, the values that hardly matter still decide (docs/accuracy.md).

    Args:
        module: A float graph from images ``(N, C, H, W)`` to logits ``(N, classes)``.
        names: Nodes that give ``(N, C, ...)``.
        batches: Images on the device of the graph.
        seed: Of the drawn classes.
        done: Called as images are weighed, with how many were.

    Returns:
        By node name, on the CPU. Nodes that no prediction depends on are left out, and those that
        are not finite; where a prediction is not, all are.
    """
    watch = _Values(module, names)
    if not differentiate(watch, batches, seed=seed, done=done):
        return {}
    found = {}
    for name in list(watch.found):
        parts = watch.found.pop(name)  # hundreds of megabytes in all: not held twice
        if math.isfinite(parts.low) and math.isfinite(parts.high):
            values, weights = torch.cat(parts.values, dim=1), torch.cat(parts.weights, dim=1)
            found[name] = WeighedValues(values, weights, parts.low, parts.high)
    return found


def spread_positions(first: int, count: int, each: int) -> Tensor:
    """Returns positions ``(count, samples)`` below ``each`` of the images from ``first`` on.

    Which are taken of an image depends on how many came before, not on the batches.
    """
    wanted = min(SAMPLES_PER_IMAGE, each)
    offset = (torch.arange(first, first + count) * _GOLDEN).frac()[:, None]  # misses no place
    return ((torch.arange(wanted) + offset) * (each / wanted)).long().clamp_max(each - 1)


@dataclass
class _Parts:
    """The samples of one tensor so far, and its extremes."""

    values: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    low: float = math.inf
    high: float = -math.inf

    def extend(self, values: Tensor, weights: Tensor, low: float, high: float) -> None:
        """Takes in the next images."""
        self.values.append(values)
        self.weights.append(weights)
        self.low, self.high = min(self.low, low), max(self.high, high)


class _Values(Watch):
    """Notes values and weights by node name."""

    def __init__(self, module: fx.GraphModule, names: Collection[str]) -> None:
        super().__init__(module)
        self.found: dict[str, _Parts] = {}
        self._names = frozenset(names)

    def watches(self, node: fx.Node) -> bool:
        """Whether it is one of those asked for."""
        return node.name in self._names

    def note(self, name: str, value: Tensor, grad: Tensor) -> None:
        """Keeps the images' samples."""
        if value.ndim < 2:
            return
        flat = value.reshape(*value.shape[:2], -1)
        positions = spread_positions(self.first, self.count, flat.shape[2]).to(value.device)
        index = positions[:, None].expand(-1, flat.shape[1], -1)
        energy = grad.reshape(flat.shape).gather(2, index).square()
        norm = torch.linalg.vector_norm(grad, dim=tuple(range(1, grad.ndim))).double()
        mean = (norm.square() / grad[0].numel())[:, None, None]
        share = torch.nan_to_num(torch.where(mean > 0, energy / mean, 1.0), nan=1.0)
        self.found.setdefault(name, _Parts()).extend(
            _by_channel(flat.gather(2, index).float()),
            _by_channel(share.clamp_max(_MOST).half()),
            *torch.stack(torch.aminmax(value)).tolist(),
        )


def _by_channel(sample: Tensor) -> Tensor:
    """Returns ``(N, C, samples)`` as ``(C, N samples)`` on the CPU."""
    return sample.transpose(0, 1).flatten(1).cpu()
