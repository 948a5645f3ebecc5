"""scikit-learn's 1797 digits as 32x32 images, split once and for all into 1200 and 597."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fdda_deploy.pipeline.digits.network import IMAGE_SIZE, NUM_CLASSES

Split = Literal["train", "test"]
TRAIN_COUNT = 1200
"""Training images; the other 597 are tested on and nothing is ever chosen by them."""
_INK_LEVELS = 16
"""A scan's darkest cell: scikit-learn stores 0 to 16 pixels of ink per cell."""


@cache
def digit_images(split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns the images ``(n, 32, 32)`` uint8 and labels ``(n,)`` of one side of the split.

    Both arrays are shared between callers and read-only.
    """
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    labels = np.asarray(labels, dtype=np.int64)
    indices = split_indices(labels)[split]
    pixels = np.rint(scans[indices].reshape(-1, 8, 8) * (255 / _INK_LEVELS)).astype(np.uint8)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    scaled = [Image.fromarray(p).resize(size, Image.Resampling.BILINEAR) for p in pixels]
    images, chosen = np.stack([np.asarray(image) for image in scaled]), labels[indices]
    images.flags.writeable = chosen.flags.writeable = False
    return images, chosen


def split_indices(labels: NDArray[np.int64]) -> dict[Split, NDArray[np.int64]]:
    """Returns the indices of both sides, each in ascending order, every class in proportion.

    Images are ranked by the SHA-256 of their index: the order looks random, and unlike a
    generator's stream it is the same in every version of every library.
    """
    counts = np.bincount(labels, minlength=NUM_CLASSES)
    train = [
        _ranked(np.flatnonzero(labels == label))[:quota]
        for label, quota in enumerate(_quotas(counts))
    ]
    chosen = np.sort(np.concatenate(train))
    rest = np.setdiff1d(np.arange(len(labels), dtype=np.int64), chosen)
    return {"train": chosen, "test": rest}


def split_digest() -> str:
    """Returns the SHA-256 of the test images and labels: what a reported accuracy is about."""
    images, labels = digit_images("test")
    return hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()


def _ranked(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    keys = [hashlib.sha256(b"digits %d" % index).digest() for index in indices]
    order = sorted(range(len(indices)), key=keys.__getitem__)
    return np.asarray(indices[order], dtype=np.int64)


def _quotas(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns how many images each class gives to training: largest remainders fill the last."""
    shares = counts * TRAIN_COUNT / counts.sum()
    quotas = np.floor(shares).astype(np.int64)
    largest = np.argsort(quotas - shares, kind="stable")[: TRAIN_COUNT - quotas.sum()]
    return np.asarray(quotas + np.isin(np.arange(len(counts)), largest), dtype=np.int64)
