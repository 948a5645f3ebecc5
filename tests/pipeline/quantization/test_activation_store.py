"""Batches come back as they were given, wherever they waited, and nothing stays on disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.quantization import activation_store
from fdda_deploy.pipeline.quantization.activation_store import ActivationStore


def random(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(len(size)))


BATCHES = [
    random(4, 3, 5, 6),
    random(2, 3, 5, 6).to(memory_format=torch.channels_last),
    random(3, 7),
    random(2, 4, 7).transpose(1, 2),
]
SIZES = [x.numel() * 4 for x in BATCHES]


@given(limit=st.integers(0, sum(SIZES)))
def test_batches_come_back_whatever_fits_in_memory(limit: int) -> None:
    with ActivationStore(limit) as store:
        for x in BATCHES:
            store.append(x)
        assert len(store) == len(BATCHES)
        assert store.num_samples == 11
        assert store.bytes_in_memory <= limit
        assert store.bytes_in_memory + store.bytes_spilled == sum(SIZES)
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(store, BATCHES, strict=True))
        assert torch.equal(store.batch(2), BATCHES[2])


@pytest.mark.parametrize("limit", [0, 2**20], ids=["on disk", "in memory"])
def test_the_order_of_elements_stays(limit: int) -> None:
    with ActivationStore(limit) as store:
        for x in BATCHES[:3]:
            store.append(x)
        assert store.batch(0).is_contiguous()
        assert store.batch(1).is_contiguous(memory_format=torch.channels_last)
        assert store.batch(2).is_contiguous()


@pytest.mark.parametrize("limit", [0, 2**20], ids=["on disk", "in memory"])
def test_batches_are_copies_in_float32_without_gradient(limit: int) -> None:
    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    y = torch.arange(6.0).reshape(2, 3)
    with ActivationStore(limit) as store:
        store.append(x * 2)
        store.append(y)
        store.append(y[:1].expand(4, 3))
        y.zero_()
        assert store.batch(0).dtype == torch.float32
        assert not store.batch(0).requires_grad
        assert store.batch(1)[1].tolist() == [3, 4, 5]
        assert store.batch(2).tolist() == [[0, 1, 2]] * 4


def test_batches_appended_between_reads_do_not_mix() -> None:
    with ActivationStore(0) as store:
        for number in range(5):
            store.append(torch.full((2, 3), float(number)))
            assert torch.equal(store.batch(number // 2), torch.full((2, 3), float(number // 2)))


def leave_normally(store: ActivationStore) -> None:
    store.append(torch.ones(2, 2))


def leave_by_error(store: ActivationStore) -> None:
    store.append(torch.ones(2, 2))
    raise ZeroDivisionError


@pytest.mark.parametrize("leave", [leave_normally, leave_by_error])
def test_nothing_stays_on_disk(tmp_path: Path, leave: Callable[[ActivationStore], None]) -> None:
    store = ActivationStore(0, tmp_path)
    try:
        with store:
            leave(store)
    except ZeroDivisionError:
        pass
    assert list(tmp_path.iterdir()) == []
    assert len(store) == store.num_samples == store.bytes_spilled == 0
    store.close()
    with pytest.raises(IndexError, match="batch 0 of 0"):
        store.batch(0)


def test_a_closed_store_can_be_filled_again() -> None:
    with ActivationStore(0) as store:
        store.append(BATCHES[2])
        store.close()
        store.append(BATCHES[3])
        assert torch.equal(store.batch(0), BATCHES[3])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with (
        ActivationStore(0, gone) as store,
        pytest.raises(CalibrationError, match=f"^{re.escape(str(gone))}: .*84 bytes.*Free"),
    ):
        store.append(BATCHES[2])


def test_a_file_that_was_cut_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with ActivationStore(0) as store:
        store.append(BATCHES[2])
        longer: Callable[..., Tensor] = np.zeros
        monkeypatch.setattr(activation_store.np, "empty", lambda *_, **__: longer((4, 7), "f4"))
        with pytest.raises(CalibrationError, match="ends 28 bytes early"):
            store.batch(0)
