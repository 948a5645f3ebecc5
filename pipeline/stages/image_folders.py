"""Synthetic images as a folder of PNG files per class, for tools that read nothing else."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from fdda_deploy.durable import TEMP_SUFFIX, write_whole
from fdda_deploy.errors import DataError

CLASS_LIST = "classes.txt"
"""Beside the folders: their names in the order of the logits, for ``--classes``."""


def write_image_folders(npz: Path, folder: Path) -> int:
    """Writes ``folder/CLASS/INDEX.png`` for every image of ``npz``; returns how many.

    Class folders are numbers of equal width, so that sorting them by name sorts them by class;
    `CLASS_LIST` beside ``folder`` has the number of every class up to the greatest. The folder
    appears whole, in place of the one before. Hold the lock of the result folder meanwhile
    (`folder_lock.locked`): two at once would write the same files.

    Args:
        npz: File with ``x`` ``(N, H, W, C)`` uint8, ``y`` ``(N,)`` and ``num_classes``.
        folder: Replaced as a whole.

    Raises:
        DataError: The file is not of that form.
    """
    try:
        with np.load(npz, allow_pickle=False) as stored:
            images, labels = stored["x"], stored["y"].astype(np.int64)
            num_classes = int(stored["num_classes"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(
            f"{npz}: not the synthetic images of a build ({error}). Make them again with "
            "--no-cache."
        ) from error
    digits = len(str(num_classes - 1))
    partial = folder.with_name(f".{folder.name}{TEMP_SUFFIX}")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        for index, (pixels, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            place = partial / f"{label:0{digits}}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{index:06}.png").write_bytes(_png(pixels))
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    names = "".join(f"{label:0{digits}}\n" for label in range(num_classes))
    write_whole(folder.parent / CLASS_LIST, names.encode("ascii"))
    return len(images)


def _png(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(flat)).save(stream, format="PNG")
    return stream.getvalue()
