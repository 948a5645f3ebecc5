"""Images and labels from an npz, whoever made it: no pickle, no bomb, no guessing."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fdda_deploy.errors import DataError

MAX_ARRAY_BYTES = 4 << 30
"""An array that unpacks to more is refused before it is read: a zip bomb is small on disk."""

_RECIPE = "recipe"
"""Array of an npz that `synthesize` wrote: the name of the recipe, zero-dimensional."""
_RECIPE_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


@dataclass(frozen=True, eq=False)
class NpzImages:
    """Images of an npz.

    Attributes:
        pixels: ``(N, H, W[, C])`` uint8.
        labels: ``(N,)``, or None where there are none.
        recipe: Of the synthesis that made them; None for real images, as far as the file knows.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    recipe: str | None


def images_from_npz(path: Path, part: str) -> NpzImages:
    """Returns the images of an npz, and their labels where it has any.

    They are its arrays ``x`` and ``y``, or ``test_x`` and ``test_y`` for ``part="test"``. Images
    may be uint8, or floats in [0, 1], which are rounded to 255 steps.

    Raises:
        DataError: The file is damaged, holds Python objects, or its arrays are not such images.
    """
    x_name, y_name = (f"{part}_x", f"{part}_y") if part else ("x", "y")
    arrays, held = _arrays(path, (x_name, y_name))
    if x_name not in arrays:
        parts = [name.removesuffix("_x") for name in held if name.endswith("_x")]
        hint = f"Name one of its parts: {path.name}#{parts[0]}" if parts else "Save it as x and y"
        names = ", ".join(held) or "nothing"
        raise DataError(f"{path}: no array {x_name!r} in it (it holds {names}). {hint}.")
    pixels = _pixels(path, x_name, arrays[x_name])
    labels = _labels(path, y_name, arrays.get(y_name), len(pixels))
    return NpzImages(pixels, labels, _recipe(path) if _RECIPE in held else None)


def _arrays(path: Path, wanted: Sequence[str]) -> tuple[dict[str, NDArray[np.generic]], list[str]]:
    """Returns the wanted arrays of an npz, and the names of all that it holds."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {
                info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()
            }
        oversized = [name for name in wanted if sizes.get(name, 0) > MAX_ARRAY_BYTES]
        if not oversized:
            with np.load(path, allow_pickle=False) as loaded:
                # numpy hands out as bytes what is no array
                found = {name: np.asarray(loaded[name]) for name in wanted if name in loaded.files}
            return found, sorted(sizes)
    except Exception as error:  # a hostile header can raise any parser's error
        pickled = "pickle" in str(error)
        reason = "refused: it holds Python objects (pickle)" if pickled else f"damaged ({error})"
        raise DataError(f"{path}: {reason}. Save plain arrays with numpy.savez.") from error
    unpacked = f"{oversized[0]} unpacks to {sizes[oversized[0]]:,} bytes"
    raise DataError(f"{path}: {unpacked}, more than {MAX_ARRAY_BYTES:,}. Split the file.")


def _pixels(path: Path, name: str, x: NDArray[np.generic]) -> NDArray[np.uint8]:
    image_like = x.ndim == 3 or (x.ndim == 4 and x.shape[3] in {1, 3, 4})
    if not image_like or 0 in x.shape:
        raise DataError(
            f"{path}: {name} has shape {x.shape}, wanted (N, H, W) or (N, H, W, C) with 1, 3 or 4 "
            "channels last."
        )
    if x.dtype == np.uint8:
        return x.astype(np.uint8, copy=False)
    if not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"{path}: {name} is {x.dtype}, wanted uint8 or floats in [0, 1].")
    values = x.astype(np.float32, copy=False)
    if not (values.min() >= 0 and values.max() <= 1):  # also false for NaN
        raise DataError(
            f"{path}: {name} has values from {values.min():g} to {values.max():g}, wanted floats "
            "in [0, 1] or uint8."
        )
    return np.rint(values * 255).astype(np.uint8)


def _labels(
    path: Path, name: str, y: NDArray[np.generic] | None, count: int
) -> NDArray[np.int64] | None:
    if y is None:
        return None
    if not np.issubdtype(y.dtype, np.integer) or y.shape != (count,):
        raise DataError(
            f"{path}: {name} is {y.dtype} of shape {y.shape}, wanted {count} class indices."
        )
    return y.astype(np.int64)


def _recipe(path: Path) -> str | None:
    """Returns a recipe's name; None for an array of somebody else's that is called alike."""
    try:
        found = _arrays(path, (_RECIPE,))[0][_RECIPE]
    except (DataError, KeyError):  # too large, or Python objects: whatever it is, no name
        return None
    name = str(found) if found.dtype.kind == "U" and not found.ndim else ""
    return name if _RECIPE_NAME.fullmatch(name) else None
