"""Images for every stage: opened from any source, decoded once, labelled by the class list."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fdda_deploy.errors import ConfigError, DataError
from fdda_deploy.pipeline.class_labels import labels_and_names, read_classes
from fdda_deploy.pipeline.image_sources import listing_from_source
from fdda_deploy.pipeline.network import Progress
from fdda_deploy.pipeline.pixel_store import PixelStore
from fdda_deploy.pipeline.preprocessing import Preprocessing, normalized_from_uint8

__all__ = ["ImageSet", "Preprocessing", "open_images", "read_classes"]

UNKNOWN = -1
"""The label of an image whose class is not known."""


@dataclass(frozen=True, eq=False)
class _Classes:
    labels: NDArray[np.int64] | None
    names: tuple[str, ...] | None


class ImageSet:
    """Preprocessed images in a fixed order, with labels where the source has them.

    Made by :func:`open_images`. Nothing is decoded until the first image, label or length is asked
    for; then every image is decoded once, in two threads, and the damaged ones are left out. So
    ``digest``, ``origin`` and ``class_names`` cost a cached build no decoding.

    Attributes:
        origin: What the user named, for messages and reports.
        class_names: Class names in label order, or None.
        digest: SHA-256 hex of contents, labels, preprocessing and choice of images.
        preprocessing: What was done to every image.
        recipe: Name of the one that synthesized the images; None for real ones.
    """

    def __init__(
        self, store: PixelStore, classes: _Classes, candidates: NDArray[np.int64], digest: str
    ) -> None:
        self._store = store
        self._classes = classes
        self._candidates = candidates
        self._sound: NDArray[np.int64] | None = None
        self.origin = store.listing.origin
        self.class_names = classes.names
        self.preprocessing = store.preprocessing
        self.digest = digest
        self.recipe = store.listing.recipe

    def __len__(self) -> int:
        return len(self._indices())

    @property
    def num_named(self) -> int:
        """Images of the source, damaged ones included; asking decodes nothing."""
        return len(self._candidates)

    @property
    def labelled(self) -> bool:
        """Whether the source has classes; asking decodes nothing."""
        return self._classes.labels is not None

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Class indices ``(n,)`` int64, or None where the source has no classes."""
        labels = self._classes.labels
        return None if labels is None else labels[self._indices()]

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the damaged images that were left out, each with the decoder's reason."""
        self._indices()
        damaged = self._store.damaged
        return tuple(damaged[index] for index in self._candidates.tolist() if index in damaged)

    def batches(
        self, batch_size: int, indices: ArrayLike | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields ``(images, labels)``: ``(n, C, H, W)`` float32 and ``(n,)`` int64.

        Args:
            batch_size: Images per batch, n; the last batch may be smaller.
            indices: Positions in this set, in the order wanted; None for all. Labels are -1 where
                they are not known.
        """
        if batch_size < 1:
            raise ConfigError(f"batch size {batch_size}: wanted 1 or more.")
        chosen = self._chosen(indices)
        chunks = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
        for chunk, pixels in zip(chunks, self._store.prefetched(chunks), strict=True):
            yield normalized_from_uint8(pixels, self.preprocessing), self._labels_of(chunk)

    def load(self, indices: ArrayLike) -> tuple[Tensor, Tensor]:
        """Returns the images at ``indices`` and their labels as one batch."""
        chosen = self._chosen(indices)
        pixels = self._store.stacked(chosen)
        return normalized_from_uint8(pixels, self.preprocessing), self._labels_of(chosen)

    def subset(self, indices: ArrayLike) -> ImageSet:
        """Returns the images at ``indices`` as a set of their own; decoded pixels are shared."""
        chosen = self._chosen(indices)
        return ImageSet(
            self._store, self._classes, chosen, _digest_of([self.digest, chosen.tolist()])
        )

    def first_per_class(self, k: int) -> ImageSet:
        """Returns the first ``k`` images of every class that has any, in the order of this set.

        Raises:
            DataError: The images have no labels.
        """
        labels = self.labels
        if labels is None:
            raise DataError(
                f"{self.origin}: has no labels, so no image per class. "
                "Give a folder per class, or an .npz with y."
            )
        seen: Counter[int] = Counter()
        chosen = []
        for position, label in enumerate(labels.tolist()):
            if seen[label] < k:
                chosen.append(position)
            seen[label] += 1
        return self.subset(chosen)

    def _indices(self) -> NDArray[np.int64]:
        if self._sound is None:
            damaged = self._store.find_damaged(self._candidates)
            self._sound = self._candidates[~np.isin(self._candidates, list(damaged))]
        return self._sound

    def _chosen(self, indices: ArrayLike | None) -> NDArray[np.int64]:
        positions = slice(None) if indices is None else np.asarray(indices, dtype=np.int64)
        return np.atleast_1d(self._indices()[positions])

    def _labels_of(self, chosen: NDArray[np.int64]) -> Tensor:
        labels = self._classes.labels
        if labels is None:
            return torch.full((len(chosen),), UNKNOWN)
        return torch.from_numpy(labels[chosen])


def open_images(
    source: str,
    preprocessing: Preprocessing,
    *,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    max_damaged: int = 10,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ImageSet:
    """Returns the images that ``source`` names, labelled where it has classes.

    Args:
        source: ``digits:train``, ``digits:test``, a folder per class, a flat folder, an ``.npz``
            (``x``, ``y``; ``file.npz#test`` for ``test_x``, ``test_y``) or a ``.tar``.
        preprocessing: What every image goes through.
        classes: Class ids in label order, where folder names are looked up; None for the folders'
            own sorted order.
        num_classes: Classes of the network; labels must fit.
        max_damaged: Damaged images that are skipped before that is an error.
        limit: Use only this many images, drawn with ``seed``; None for all.
        seed: Seed of that draw.
        progress: Told how many images are decoded.

    Raises:
        DataError: The source is missing, damaged or hostile, or its classes do not fit.
        ConfigError: ``limit`` or ``max_damaged`` is out of range.
    """
    if (limit is not None and limit < 1) or max_damaged < 0:
        raise ConfigError(f"limit {limit}, max damaged {max_damaged}: wanted at least 1 and 0.")
    listing = listing_from_source(source)
    labels, class_names = labels_and_names(listing, classes, num_classes)
    chosen = np.arange(len(listing.names), dtype=np.int64)
    if limit is not None and limit < len(chosen):
        chosen = np.sort(np.random.default_rng(seed).permutation(chosen)[:limit])
    digest = _digest_of(
        [
            listing.content_digest,
            asdict(preprocessing),
            None if labels is None else labels.tolist(),
            chosen.tolist(),
        ]
    )
    store = PixelStore(listing, preprocessing, max_damaged, progress)
    return ImageSet(store, _Classes(labels, class_names), chosen, digest)


def _digest_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
