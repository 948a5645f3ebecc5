"""Batches to run a graph on: seeded random ones, or those of an .npz file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fdda_deploy.engines.runner import Array, InputSpec, check_feed
from fdda_deploy.errors import DataError, EngineError

LARGEST_BYTES = 2**32
"""4 GiB of arrays; more is refused before it is unpacked."""


def random_feed(inputs: Sequence[InputSpec], batch: int, seed: int) -> dict[str, Array]:
    """Returns one batch: standard normal for floats, 0 or 1 for integers and booleans.

    Args:
        inputs: What the graph accepts.
        batch: Along every first axis that is dynamic.
        seed: Of NumPy's generator.

    Raises:
        EngineError: An input of a type NumPy does not know, a dynamic axis beyond the first, or a
            batch that the graph fixes otherwise.
    """
    generator = np.random.default_rng(seed)
    feed: dict[str, Array] = {}
    for spec in inputs:
        if spec.dtype is None:
            raise EngineError(f"input {spec.name}: no NumPy type for it. Give a batch with --feed.")
        shape = _shape(spec, batch)
        if np.issubdtype(spec.dtype, np.floating):
            feed[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
        else:
            feed[spec.name] = generator.integers(0, 2, shape).astype(spec.dtype)
    return feed


def load_feed(path: Path, inputs: Sequence[InputSpec]) -> dict[str, Array]:
    """Returns the arrays of an .npz file, one per input; nothing in the file is executed.

    Raises:
        DataError: Missing, damaged, over 4 GiB unpacked, or it holds Python objects.
        EngineError: Its names, types or shapes do not fit the inputs.
    """
    advice = "Write it with numpy.savez(path, name=array)."
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > LARGEST_BYTES:
            raise DataError(f"{path}: {size:,} bytes unpacked, want {LARGEST_BYTES:,} at most.")
        with np.load(path, allow_pickle=False) as arrays:
            feed = {name: np.asarray(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not a readable .npz file ({reason}). {advice}") from None
    except (zipfile.BadZipFile, zlib.error, SyntaxError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not a readable .npz file ({reason}). {advice}") from None
    check_feed(feed, inputs)
    return feed


def _shape(spec: InputSpec, batch: int) -> tuple[int, ...]:
    sizes = list(spec.shape)
    if sizes and sizes[0] is None:
        sizes[0] = batch
    elif sizes and sizes[0] != batch:
        raise EngineError(
            f"input {spec.name}: the graph fixes its batch to {sizes[0]}, got {batch}. "
            f"Ask for batch {sizes[0]}, or export with a dynamic batch."
        )
    known = [size for size in sizes if size is not None]
    if len(known) != len(sizes):
        raise EngineError(
            f"input {spec.name}: shape {spec.shape} is dynamic beyond the batch. "
            "Give a batch with --feed."
        )
    return tuple(known)
