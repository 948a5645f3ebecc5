"""The float and the quantized value at one place of a network, batch by batch, moving forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from fdda_deploy.pipeline.allocator import return_freed_memory_above
from fdda_deploy.pipeline.quantization.activation_store import ActivationStore
from fdda_deploy.pipeline.quantization.blocks import Block, extract, find_blocks

_STORES = 4
"""While the streams move, the old and the new values of both are held."""
_MERGED_LAYERS = 6
"""A merged block computes its first layers again for each one behind them."""


class Streams:
    """Pairs of float and quantized values in the order of the images, within a bound of memory.

    Both start as the images. A context manager: leaving it removes what was put on disk.

    Args:
        images: Batches ``(N, C, ...)`` float32, preprocessed.
        batch_size: Larger batches are split.
        device: Where values are computed and handed out.
        limit_bytes: RAM for the values of both streams.
        folder: For what does not fit; the system's temporary folder when not given.
        resident_limit_bytes: While the process holds more, freed memory is given back. What is kept
            lies between what is computed, and the gaps are too small for it.
    """

    def __init__(
        self,
        images: Iterable[Tensor],
        *,
        batch_size: int,
        device: torch.device,
        limit_bytes: int,
        folder: Path | None = None,
        resident_limit_bytes: int | None = None,
    ) -> None:
        self._resident_limit = resident_limit_bytes
        self._device = device
        self._share = limit_bytes // _STORES
        self._folder = folder
        self._open: list[ActivationStore] = []
        self.bytes_spilled = 0
        self._float = self._quant = self._store()
        for batch in images:
            for part in torch.split(batch, batch_size):
                last = {"memory_format": torch.channels_last} if part.ndim == 4 else {}
                self._float.append(part.contiguous(**last))
        self.num_samples = self._float.num_samples
        self._note()

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        for store in self._open:
            store.close()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, x_hat in zip(self._float, self._quant, strict=True):
            yield x.to(self._device), x_hat.to(self._device)

    def advance(self, block: Block, float_module: fx.GraphModule, quant: fx.GraphModule) -> None:
        """Moves both streams from the source of ``block`` to its result."""
        parts = [streamed(module, block.source, block.result) for module in (float_module, quant)]
        after = [self._store(), self._store()]
        for values in self:
            for part, store, value in zip(parts, after, values, strict=True):
                store.append(part(value))
            if self._resident_limit is not None:
                return_freed_memory_above(self._resident_limit)
        for store in [store for store in self._open if store not in after]:
            store.close()
            self._open.remove(store)
        self._float, self._quant = after
        self._note()

    def blocks(self, float_module: fx.GraphModule) -> list[Block]:
        """Returns the chain of blocks, joined where the value between two would not fit in RAM.

        Wide values behind an expanding layer are computed again instead, for at most six layers in
        a row; beyond that they are spilled.
        """
        sizes = _Sizes(float_module)
        sizes.run(self._float.batch(0)[:1].contiguous().to(self._device))
        chain: list[Block] = []
        for block in find_blocks(float_module):
            before = chain[-1] if chain else None
            if (
                before is not None
                and 4 * sizes.numel[before.result] * self.num_samples > self._share
                and len(before.layers) + len(block.layers) <= _MERGED_LAYERS
            ):
                joined = Block(before.source, block.result, before.layers + block.layers)
                chain[-1] = joined
            else:
                chain.append(block)
        return chain

    def _store(self) -> ActivationStore:
        store = ActivationStore(self._share, self._folder)
        self._open.append(store)
        return store

    def _note(self) -> None:
        """Counts the bytes that went to disk."""
        self.bytes_spilled += sum(s.bytes_spilled for s in {self._float, self._quant})


def streamed(module: fx.GraphModule, source: str, result: str) -> fx.GraphModule:
    """Returns `extract` of a graph for channels_last values, on which convolutions are faster.

    A view that the graph takes of a row-major tensor becomes a reshape, which copies where it must.
    """
    part = extract(module, source, result)
    for node in part.graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    part.recompile()
    return part


class _Sizes(fx.Interpreter):
    """Runs a graph and remembers how many numbers each node gave."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.numel: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:  # the interpreter's own signature
        result = super().run_node(n)
        self.numel[n.name] = result.numel() if isinstance(result, Tensor) else 0
        return result
