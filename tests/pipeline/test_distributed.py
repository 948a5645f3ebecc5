"""Ranks find each other, agree, and learn why one of them stopped."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from several_ranks import RANKS, joined_outcomes

from fdda_deploy.errors import ConfigError, RankError
from fdda_deploy.pipeline.distributed import ALONE, Ranks, joined

pytestmark = RANKS


def test_started_plainly_there_is_no_process_group() -> None:
    with joined() as ranks:
        assert ranks is ALONE
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("count", [0, 1, 5, 16])
def test_shares_cover_everything_once_and_differ_by_one_at_most(count: int) -> None:
    shares = [Ranks(rank, 3).share(count) for rank in range(3)]
    taken = [place for share in shares for place in range(share.start, share.stop)]
    assert taken == list(range(count))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1
    if count:
        assert Ranks(0, 3).weights(count).tolist() == pytest.approx([n / count for n in lengths])


def test_places_of_shares_lie_in_the_row_of_all_batches() -> None:
    assert Ranks(1, 2).places([4, 3]).tolist() == [2, 3, 5, 6]


def test_ranks_add_gather_and_hear_the_leader() -> None:
    def work(ranks: Ranks) -> tuple[list[float], list[int], str]:
        total = ranks.add_up(torch.full((2,), float(ranks.rank + 1)))
        return total.tolist(), ranks.gathered(ranks.rank), ranks.told(f"from {ranks.rank}")

    assert joined_outcomes(work, 3) == [([6.0, 6.0], [0, 1, 2], "from 0")] * 3


def test_killed_rank_stops_the_other_within_a_minute() -> None:
    def work(ranks: Ranks) -> None:
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.add_up(torch.zeros(1))

    start = time.monotonic()
    leader, killed = joined_outcomes(work)
    assert time.monotonic() - start < 60
    assert killed is None
    assert isinstance(leader, RankError)
    assert "rank 0 of 2: another rank stopped (it left no word" in str(leader)
    assert "Start all processes again to continue." in str(leader)


@pytest.mark.parametrize("failing", [0, 1])
def test_rank_that_fails_tells_the_other_why(failing: int) -> None:
    def work(ranks: Ranks) -> None:
        if ranks.rank == failing:
            raise ConfigError("--bread: there is none.")
        ranks.told(None)

    found = joined_outcomes(work)
    assert isinstance(found[failing], ConfigError)
    assert isinstance(found[1 - failing], RankError)
    if failing == 1:  # the store of a rank 0 that is gone may be gone with it
        assert "(rank 1: --bread: there is none.)" in str(found[0])


@pytest.mark.parametrize(("rank", "size"), [("two", "2"), ("2", "2"), ("0", "-1")])
def test_damaged_environment_is_told(monkeypatch: pytest.MonkeyPatch, rank: str, size: str) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(ConfigError, match=r"got RANK=.*Start through torchrun, or unset"), joined():
        pass


def test_process_without_a_gpu_of_its_own_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"torch sees 1.*--nproc-per-node 1, or take --device"):
        Ranks(1, 2, 1).device("cuda")
