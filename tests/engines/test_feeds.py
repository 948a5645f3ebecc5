"""Feeds: seeded and of the graph's shape, or from an .npz that can run nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wild import refusal_of

from fdda_deploy.engines.feeds import load_feed, random_feed
from fdda_deploy.engines.runner import InputSpec
from fdda_deploy.errors import DataError, EngineError

IMAGE = InputSpec("input", np.dtype(np.float32), (None, 3, 4, 4))


@given(batch=st.integers(1, 5), seed=st.integers(0, 99))
def test_random_feed_fits_and_is_the_seed_s_own(batch: int, seed: int) -> None:
    first, again = random_feed([IMAGE], batch, seed), random_feed([IMAGE], batch, seed)
    assert first["input"].shape == (batch, 3, 4, 4)
    assert first["input"].dtype == np.float32
    np.testing.assert_array_equal(first["input"], again["input"])
    assert not np.array_equal(first["input"], random_feed([IMAGE], batch, seed + 1)["input"])


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.bool_, np.float16])
def test_every_type_of_input_is_filled(dtype: type) -> None:
    spec = InputSpec("ids", np.dtype(dtype), (None, 6))
    array = random_feed([spec], 2, 0)["ids"]
    assert array.dtype == dtype
    assert np.isfinite(array).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            InputSpec("a", None, (None, 2)),
            "input a: no NumPy type for it. Give a batch with --feed",
        ),
        (
            InputSpec("a", np.dtype(np.float32), (4, 2)),
            "fixes its batch to 4, got 3. Ask for batch 4",
        ),
        (InputSpec("a", np.dtype(np.float32), (None, None)), "dynamic beyond the batch"),
    ],
    ids=["type", "fixed batch", "dynamic"],
)
def test_input_that_cannot_be_made_up_is_named(spec: InputSpec, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        random_feed([spec], 3, 0)


def test_file_of_arrays_is_the_feed(tmp_path: Path) -> None:
    path, array = tmp_path / "feed.npz", np.ones((2, 3, 4, 4), np.float32)
    np.savez(path, input=array)
    np.testing.assert_array_equal(load_feed(path, [IMAGE])["input"], array)


def test_file_that_does_not_fit_is_told_as_any_feed(tmp_path: Path) -> None:
    np.savez(tmp_path / "feed.npz", images=np.ones(3))
    with pytest.raises(EngineError, match="feed has images: the graph wants input"):
        load_feed(tmp_path / "feed.npz", [IMAGE])


def test_python_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "feed.npz", input=np.array([{}], object))
    with pytest.raises(DataError, match=r"feed\.npz: not a readable \.npz file"):
        load_feed(tmp_path / "feed.npz", [IMAGE])


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"No such file or directory\)\. Write it with numpy\.savez"
    ):
        load_feed(tmp_path / "none.npz", [IMAGE])


@pytest.mark.fuzz
@given(places=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8))
def test_damaged_files_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("npz") / "feed.npz"
    np.savez_compressed(path, input=np.ones((1, 3, 4, 4), np.float32))
    data = bytearray(path.read_bytes())
    for place, value in places:
        data[place % len(data)] = value
    path.write_bytes(bytes(data))
    said = refusal_of(lambda: load_feed(path, [IMAGE])["input"].reshape(1, 3, 4, 4))
    assert "\n" not in said
