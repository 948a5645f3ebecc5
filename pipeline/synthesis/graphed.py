"""The float network as CUDA graphs: its hundreds of kernels launched at once, both ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from fdda_deploy.pipeline.synthesis.rewiring import SeeingNetwork, Seen

Tensors = tuple[Tensor, ...]
Forward = Callable[[Tensor], Tensors]
Capture = Callable[[Forward, Tensor], Forward]
EAGER_STEPS = 3
"""Steps of one batch size before it is captured: cuDNN and cuBLAS choose their kernels in them."""
MOST_SHAPES = 2
"""Batch sizes that are captured, each with memory of its own: with a class's batch, without."""


class GraphedNetwork:
    """A `SeeingNetwork` that is captured, forwards and backwards, and replayed from then on.

    A replay does what was captured, on the same memory: input buffers and outputs are static, and
    what it returns holds until the next call. Where CUDA cannot capture, everything goes on without
    and `trouble` says why.

    Args:
        network: On a CUDA device; it must draw no random numbers, so no swing convolutions.
        capture: Turns a forward and an example of its input into its replay; CUDA's own unless
            a test brings another.

    Attributes:
        trouble: Why nothing is captured, in one line; None while all is well.
    """

    def __init__(self, network: SeeingNetwork, capture: Capture | None = None) -> None:
        assert not network.swings, "random shifts cannot be replayed"
        self.trouble: str | None = None
        self._network, self._capture = network, capture or captured
        self._replays: dict[torch.Size, Forward] = {}
        self._met: Counter[torch.Size] = Counter()

    def __call__(self, x: Tensor) -> Seen:
        """Returns what a batch ``(N, C, H, W)`` shows, with gradients to ``x``."""
        replay = self._replay_for(x)
        if replay is None:
            return self._network(x)  # type: ignore[no-any-return]  # a module's call is untyped
        logits, *others = replay(x)
        count = len(self._network.layers)
        features = others[count] if len(others) > count else None
        return Seen(logits, tuple(others[:count]), features)

    def _replay_for(self, x: Tensor) -> Forward | None:
        """Returns the graph for batches like ``x``; None where the network is to run as it is."""
        if self.trouble is not None or not (x.requires_grad and torch.is_grad_enabled()):
            return None
        if x.shape in self._replays:
            return self._replays[x.shape]
        self._met[x.shape] += 1
        if self._met[x.shape] <= EAGER_STEPS or len(self._replays) == MOST_SHAPES:
            return None
        try:
            self._replays[x.shape] = self._capture(self._tensors, x)
        except (RuntimeError, AssertionError) as error:  # torch has both for what it cannot capture
            reason = " ".join(str(error).split())[:160]
            self.trouble = f"CUDA graphs are not used: {reason or type(error).__name__}"
            return None
        return self._replays[x.shape]

    def _tensors(self, x: Tensor) -> Tensors:
        """Returns what `Seen` holds, tensors alone."""
        seen = self._network(x)
        return (seen.logits, *seen.bn_inputs, *([] if seen.features is None else [seen.features]))


def captured(forward: Forward, x: Tensor) -> Forward:
    """Returns ``forward`` as a pair of CUDA graphs, for inputs like ``x``, in autograd's eyes.

    See ``torch.cuda.make_graphed_callables``. Autocast stays as it is but for its cache, whose
    casts would belong to nobody in a graph.

    Raises:
        RuntimeError: CUDA cannot capture it, or there is no CUDA.
    """
    kind = x.device.type
    example = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast(
        kind,
        dtype=torch.get_autocast_dtype(kind),
        enabled=torch.is_autocast_enabled(kind),
        cache_enabled=False,
    ):
        found = torch.cuda.make_graphed_callables(forward, (example,), allow_unused_input=True)
    return cast("Forward", found)  # one callable in, one out
