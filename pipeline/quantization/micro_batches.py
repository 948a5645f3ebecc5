"""A training step in parts that fit a memory limit; their gradients add up to the whole batch's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SAVED_SHARE = 0.4
"""Of the limit, for what autograd saves: gradients, temporaries, the teacher's pass, images and the
process itself need the rest."""


def images_at_once(
    forward: Callable[[Tensor], Tensor], image: Tensor, batch_size: int, limit_bytes: int | None
) -> int:
    """Returns ``batch_size``, halved until what autograd saves of a part fits the limit; 1 or more.

    Args:
        forward: The training forward pass, whose parameters require gradients.
        image: One of the batch, ``(1, C, H, W)``, on the device of the pass.
        batch_size: Images of a step.
        limit_bytes: Of memory in all; None for no limit.
    """
    if limit_bytes is None or batch_size <= 1:
        return max(1, batch_size)
    one, two = (_saved_bytes(forward, image.repeat(n, 1, 1, 1)) for n in (1, 2))
    count, fixed = batch_size, max(0, 2 * one - two)
    while count > 1 and fixed + count * (two - one) > _SAVED_SHARE * limit_bytes:
        count = (count + 1) // 2
    return count


def backward_in_parts(
    loss_of: Callable[[Tensor, Tensor, tuple[float, float]], Tensor],
    images: Tensor,
    labels: Tensor,
    mine: slice,
    at_once: int,
) -> Tensor:
    """Adds the gradients of a share of a batch, part by part; returns the share's loss, detached.

    Args:
        loss_of: The mean loss of (images, labels) times the parts given: of the batch, and of the
            labelled images in it. The losses of all parts add up to the batch's.
        images: The whole batch ``(N, C, H, W)``.
        labels: ``(N,)`` int64, -1 for unknown.
        mine: The share.
        at_once: Images of a part.
    """
    num_known = max(1.0, float((labels >= 0).sum()))
    total = torch.zeros((), device=images.device)
    shares = torch.split(images[mine], at_once), torch.split(labels[mine], at_once)
    for x, y in zip(*shares, strict=True):
        loss = loss_of(x, y, (len(y) / len(labels), float((y >= 0).sum()) / num_known))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        total += loss.detach()
    return total


def _saved_bytes(forward: Callable[[Tensor], Tensor], images: Tensor) -> int:
    """Returns the bytes of all memory that a backward pass of ``forward(images)`` would read."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        result = forward(images)  # held until the sum: freed memory would be counted twice
    total = sum(kept.values())
    del result
    return total
