"""Several processes that share one build: who they are, and what they tell each other.

Started plainly there is one rank, `ALONE`: no process group, no cost. Under ``torchrun`` each
process is a rank. Rank 0 leads: it alone writes files and prints. The others do their share of the
long stages. Every rank sees one file system.

Two groups of the same ranks: steps of a training loop, which all take about the same time, may
wait `STEP_SECONDS` for each other; words and results (`Ranks.tell`, `Ranks.gathered`) wait as long
as the others live, for rank 0 may well build an engine in between. A rank that dies closes its
connections, and who waits for it stops at once with a `RankError`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from fdda_deploy.errors import ConfigError, RankError

STEP_SECONDS = 60.0
"""Longest wait for the other ranks within a training loop."""
START_SECONDS = 300.0
"""Longest wait for the other ranks to start: they import torch one beside the other."""
_LAST_WORDS_SECONDS = 3.0
_ERROR = "error"
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; the methods are collective: all ranks call them alike.

    Attributes:
        rank: 0 leads.
        size: Processes of the run.
        local_rank: Place among those of this machine: its GPU.
        control: Group for words and results; None alone.
        store: Where a rank that fails leaves its last words; None alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    control: Any = None
    store: Any = None

    @property
    def alone(self) -> bool:
        """No other process takes part."""
        return self.size == 1

    @property
    def follows(self) -> bool:
        """This is not rank 0: it writes nothing and prints nothing."""
        return self.rank > 0

    def share(self, count: int) -> slice:
        """Returns which of ``count`` things in a row are this rank's; shares differ by 1 at most.

        Example:
            >>> Ranks(rank=1, size=2).share(5)
            slice(2, 5, None)
        """
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def weights(self, count: int) -> Tensor:
        """Returns the part of ``count`` things that each rank has: ``(size,)``, sum 1."""
        edges = torch.arange(self.size + 1) * count // self.size
        return (edges[1:] - edges[:-1]) / count

    def places(self, sizes: Iterable[int]) -> Tensor:
        """Returns where this rank's shares of several batches lie in the row of all batches."""
        found, start = [], 0
        for size in sizes:
            part = self.share(size)
            found.append(torch.arange(start + part.start, start + part.stop))
            start += size
        return torch.cat(found)

    def gathered_rows(self, row: Tensor) -> Tensor:
        """Returns every rank's ``row`` (of one shape): ``(size, *row.shape)``, the same everywhere.

        Raises:
            RankError: Another rank stopped.
        """
        if self.alone:
            return row[None]
        rows = [torch.empty_like(row) for _ in range(self.size)]
        with self._explained():
            dist.all_gather(rows, row.contiguous())
        return torch.stack(rows)

    def add_up(self, total: Tensor) -> Tensor:
        """Adds every rank's ``total`` into it, in place; the same bits everywhere.

        Raises:
            RankError: Another rank stopped.
        """
        if not self.alone:
            with self._explained():
                dist.all_reduce(total)
        return total

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its sum over the ranks, in one message.

        Raises:
            RankError: Another rank stopped.
        """
        if self.alone:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = self.add_up(torch.cat([grad.reshape(-1) for grad in grads]))
        sizes = [grad.numel() for grad in grads]
        for grad, part in zip(grads, torch.split(flat, sizes), strict=True):
            grad.copy_(part.view_as(grad))

    def told(self, word: Any) -> Any:
        """Returns rank 0's ``word``, whatever the others pass; waits as long as rank 0 lives.

        Raises:
            RankError: Another rank stopped.
        """
        if self.alone:
            return word
        words = [word]
        with self._explained():
            dist.broadcast_object_list(words, src=0, group=self.control)
        return words[0]

    def gathered(self, word: Any) -> list[Any]:
        """Returns what each rank passes, by rank; waits as long as they live.

        Raises:
            RankError: Another rank stopped.
        """
        words: list[Any] = [word] * self.size
        if not self.alone:
            with self._explained():
                dist.all_gather_object(words, word, group=self.control)
        return words

    def meet(self) -> None:
        """Waits until every rank is here.

        Raises:
            RankError: Another rank stopped.
        """
        self.gathered(None)

    def device(self, name: str) -> torch.device:
        """Returns the device of this rank: of several on one machine each has its own GPU.

        Raises:
            ConfigError: There are fewer GPUs than processes.
        """
        if self.alone or name != "cuda":
            return torch.device(name)
        found = torch.cuda.device_count()
        if self.local_rank >= found:
            raise ConfigError(
                f"--device cuda: process {self.local_rank + 1} of this machine has no GPU of its "
                f"own, torch sees {found}. Start --nproc-per-node {found}, or take --device cpu."
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what a lost connection raises into the error of the rank that was lost."""
        try:
            yield
        except RuntimeError as error:
            said = self._last_words()
            reason = " ".join(str(error).split())[:160]
            what = said or f"it left no word; the connection says: {reason}"
            raise RankError(
                f"rank {self.rank} of {self.size}: another rank stopped ({what}). Start all "
                "processes again to continue."
            ) from error

    def _last_words(self) -> str | None:
        with contextlib.suppress(RuntimeError):  # nothing there, or the store went with its rank
            self.store.wait([_ERROR], timedelta(seconds=_LAST_WORDS_SECONDS))
            words: bytes = self.store.get(_ERROR)
            return words.decode(errors="replace")
        return None

    def leave_word(self, error: BaseException) -> None:
        """Tells the others why this rank stops; they read it when they miss it."""
        if self.alone:
            return
        text = f"rank {self.rank}: {' '.join((str(error) or type(error).__name__).split())[:500]}"
        with contextlib.suppress(RuntimeError):
            self.store.set(_ERROR, text)


ALONE = Ranks()
"""The one rank of a run that was started plainly."""


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Joins the other processes of the run while the block runs; `ALONE` outside ``torchrun``.

    Raises:
        ConfigError: The environment of ``torchrun`` is damaged, or torch was built without it.
        RankError: Another rank did not start.
    """
    ranks = _from_environment()
    if ranks is None:
        yield ALONE
        return
    ranks = _connected(ranks)
    try:
        yield ranks
    except BaseException as error:
        if not isinstance(error, RankError):
            ranks.leave_word(error)
        raise
    dist.destroy_process_group()


def _from_environment() -> Ranks | None:
    """Returns this process's place, unconnected; None where it is the only one."""
    if not all(name in os.environ for name in _VARIABLES):
        return None
    rank, size, local = (os.environ.get(n, "0") for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    numbers = all(text.isdecimal() for text in (rank, size, local))
    if not numbers or int(rank) >= int(size):
        raise ConfigError(
            f"environment: got RANK={rank!r}, WORLD_SIZE={size!r}, LOCAL_RANK={local!r}; want "
            "numbers, the rank below the size. Start through torchrun, or unset WORLD_SIZE."
        )
    return Ranks(int(rank), int(size), int(local)) if int(size) > 1 else None


def _connected(ranks: Ranks) -> Ranks:
    if not (dist.is_available() and dist.is_gloo_available()):
        raise ConfigError(
            f"WORLD_SIZE={ranks.size}: this torch was built without torch.distributed and gloo. "
            "Start without torchrun."
        )
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        found, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=START_SECONDS))))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"fdda-deploy/{attempt}", found)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if nccl else "gloo",
            store=store,
            rank=ranks.rank,
            world_size=ranks.size,
            timeout=timedelta(seconds=STEP_SECONDS),
        )
        control = dist.new_group(backend="gloo", timeout=timedelta(days=30))
    except RuntimeError as error:
        raise RankError(
            f"rank {ranks.rank} of {ranks.size}: the other processes were not reached "
            f"({' '.join(str(error).split())[:160]}). Start all of them through one torchrun."
        ) from error
    return Ranks(ranks.rank, ranks.size, ranks.local_rank, control, store)
