"""The values between two blocks, an image per batch, and how many images a step may take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.quantization.activation_store import ActivationStore
from fdda_deploy.pipeline.quantization.blocks import depending_on

_COPIES = 4
"""Tensors that autograd, QDrop and gradients hold for each value of a unit's graph."""
_WEIGHT_COPIES = 6
"""The same for each weight, counted before and behind its quantizer: V, its gradient, the moments
of Adam, and what forward makes of it."""


def stored(batches: Iterable[Tensor], limit_bytes: int) -> ActivationStore:
    """Returns a store of ``batches``, split into single images, so that any can be drawn.

    Args:
        batches: ``(N, ...)`` float32.
        limit_bytes: RAM it may take; the rest is on disk.
    """
    store = ActivationStore(limit_bytes)
    try:
        for batch in batches:
            for image in torch.split(batch, 1):
                store.append(image)
    except BaseException:
        store.close()
        raise
    return store


@torch.no_grad()
def through(
    part: fx.GraphModule, stream: ActivationStore, device: torch.device, limit_bytes: int, size: int
) -> ActivationStore:
    """Returns what ``part`` makes of a stream.

    Args:
        part: From one tensor to one tensor.
        stream: An image per batch.
        device: Where to compute.
        limit_bytes: RAM for the result.
        size: Images at a time.
    """
    return stored((part(x.to(device)) for x in _batches(stream, size)), limit_bytes)


def fitting_batch(
    part: fx.GraphModule, image: Tensor, wanted: int, limit_bytes: int, *, learn: bool
) -> int:
    """Returns ``wanted``, halved until a step of that many images fits, by estimate.

    Args:
        part: The unit, on the device of ``image``.
        image: ``(1, ...)``, its input.
        wanted: Images.
        limit_bytes: Of a step.
        learn: Count what autograd and the optimizer hold too.

    Raises:
        CalibrationError: Not even one image fits.
    """
    walk = _Sizes(part)
    walk.run(image)
    fixed = walk.weight_bytes * (_WEIGHT_COPIES if learn else 1)
    each = walk.value_bytes * (_COPIES if learn else 1)
    size = wanted
    while size > 1 and fixed + size * each > limit_bytes:
        size //= 2
    if fixed + size * each > limit_bytes:
        raise CalibrationError(
            f"reconstruction needs about {(fixed + each) / 2**20:.3g} MiB for one image of a block "
            f"and may take {limit_bytes / 2**20:.3g}. Allow more memory, or round in closed form."
        )
    return size


def _batches(stream: ActivationStore, size: int) -> Iterator[Tensor]:
    for start in range(0, len(stream), size):
        yield torch.cat([stream.batch(i) for i in range(start, min(start + size, len(stream)))])


class _Sizes(fx.Interpreter):
    """Adds up the bytes of all values and of all weights of a graph."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.value_bytes = self.weight_bytes = 0
        nodes = list(module.graph.nodes)
        self._values = depending_on([n for n in nodes if n.op == "placeholder"], nodes)

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:  # the interpreter's own signature
        """Counts the result of one node."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            if n in self._values:
                self.value_bytes += result.nbytes
            else:
                self.weight_bytes += result.nbytes
        return result
