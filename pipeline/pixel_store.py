"""Decodes images once, in two threads, and keeps the pixels that fit a fixed memory budget."""

from __future__ import annotations

import io
import re
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fdda_deploy.errors import DataError
from fdda_deploy.pipeline.image_sources import Listing
from fdda_deploy.pipeline.network import Progress
from fdda_deploy.pipeline.preprocessing import Preprocessing, pixels_from_image

PIXEL_BUDGET_BYTES = 256 << 20
"""Decoded pixels kept in memory: 1700 images of 224 px; the rest are decoded again when asked."""
DECODING_THREADS = 2
"""Pillow decodes without Python's lock, so two threads keep two cores busy."""
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What may be opened whatever its suffix: Pillow would run Ghostscript for a PostScript file."""


class PixelStore:
    """Decodes images by index, keeps the pixels that fit the budget, and counts the damaged.

    Attributes:
        listing: Every image of the source, encoded.
        preprocessing: What is done to each.
        damaged: Index to name and reason, of the images found damaged so far.
    """

    def __init__(
        self,
        listing: Listing,
        preprocessing: Preprocessing,
        max_damaged: int,
        progress: Progress | None,
    ) -> None:
        self.listing = listing
        self.preprocessing = preprocessing
        self.damaged: dict[int, str] = {}
        self._max_damaged = max_damaged
        self._progress = progress
        self._pixels: dict[int, NDArray[np.uint8]] = {}
        self._examined: set[int] = set()
        self._free_bytes = PIXEL_BUDGET_BYTES

    def find_damaged(self, indices: NDArray[np.int64]) -> dict[int, str]:
        """Returns damaged indices with their names, after decoding what was not yet decoded.

        Raises:
            DataError: More than ``max_damaged`` are, or no image is left.
        """
        fresh = [index for index in indices.tolist() if index not in self._examined]
        with warnings.catch_warnings(), ThreadPoolExecutor(DECODING_THREADS) as pool:
            # a bomb is told as a damaged image: our limit is below the one that Pillow warns of
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            pending = deque((index, pool.submit(self._examine, index)) for index in fresh)
            try:
                for done in range(len(fresh)):
                    index, future = pending.popleft()
                    self._note(index, future.result())
                    if self._progress is not None and (done % 16 == 15 or done + 1 == len(fresh)):
                        self._progress(done + 1, len(fresh), f"reading {self.listing.origin}")
            finally:  # an error must not wait for the images behind it
                for _, future in pending:
                    future.cancel()
        if fresh and len(self.damaged) == len(self._examined):
            raise DataError(f"{self._damage_report()}: every image is damaged. Replace them.")
        return self.damaged

    def prefetched(self, chunks: Sequence[NDArray[np.int64]]) -> Iterator[NDArray[np.uint8]]:
        """Yields each chunk's pixels ``(n, H, W, C)`` while the next chunk is being decoded."""
        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            waiting: deque[list[Future[NDArray[np.uint8]]]] = deque()
            for chunk in chunks:
                waiting.append([pool.submit(self._get, index) for index in chunk.tolist()])
                if len(waiting) > 1:
                    yield np.stack([future.result() for future in waiting.popleft()])
            for futures in waiting:
                yield np.stack([future.result() for future in futures])

    def stacked(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Returns the pixels ``(n, H, W, C)`` of ``indices``."""
        if not len(indices):
            height, width = self.preprocessing.height, self.preprocessing.width
            return np.empty((0, height, width, self.preprocessing.channels), np.uint8)
        if all(index in self._pixels for index in indices.tolist()):  # no threads to start
            return np.stack([self._pixels[index] for index in indices.tolist()])
        return next(self.prefetched([indices]))

    def _examine(self, index: int) -> str | None:
        """Returns why an image cannot be decoded, or None for a sound one."""
        try:
            self._get(index)
        except MemoryError:  # ours, not the file's
            raise
        except Exception as error:  # noqa: BLE001  # damaged files raise any decoder's error
            return _one_line(error)
        return None

    def _note(self, index: int, reason: str | None) -> None:
        """Records an image as examined; called in order, so that the same images are named."""
        self._examined.add(index)
        if reason is None:
            return
        self.damaged[index] = f"{self.listing.names[index]} ({reason})"
        if len(self.damaged) > self._max_damaged:
            raise DataError(
                f"{self._damage_report()}; at most {self._max_damaged} are skipped. Replace them, "
                "or raise --max-damaged."
            )

    def _damage_report(self) -> str:
        shown = "; ".join(self.damaged[index] for index in sorted(self.damaged)[:3])
        return f"{self.listing.origin}: {len(self.damaged)} damaged images: {shown}"

    def _get(self, index: int) -> NDArray[np.uint8]:
        kept = self._pixels.get(index)
        if kept is not None:
            return kept
        pixels = _decoded(self.listing.read(index), self.preprocessing)
        if pixels.nbytes <= self._free_bytes:
            self._free_bytes -= pixels.nbytes
            self._pixels[index] = pixels
        return pixels


def _decoded(encoded: bytes | NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    if isinstance(encoded, bytes):
        with Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS) as image:
            return pixels_from_image(image, preprocessing)
    squeezed = encoded[:, :, 0] if encoded.ndim == 3 and encoded.shape[2] == 1 else encoded
    return pixels_from_image(Image.fromarray(squeezed), preprocessing)


def _one_line(error: Exception) -> str:
    text = re.sub(r" <_io.BytesIO[^>]*>", "", str(error))  # Pillow shows what it was handed
    return " ".join(text.split()) or type(error).__name__
