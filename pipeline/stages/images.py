"""Which images set the ranges, which are trained on, and which judge: chosen once, by seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.data import ImageSet
from fdda_deploy.pipeline.preprocessing import SMALL_IMAGE_PX
from fdda_deploy.pipeline.quantization.finetune import Draw

ENOUGH_REAL = 256
"""From this many real images on, ranges come from them alone (``--calibrate-on auto``)."""
MOST_CALIBRATION_IMAGES = {"small": 512, "large": 256}
"""Images of a kind that set ranges, up to 64 px and above, where each has many positions."""
_HELD_OUT_SHARE = 0.2
_MOST_HELD_OUT = 64
_FEWEST_TO_HOLD_OUT = 20


@dataclass(frozen=True)
class Pool:
    """The images of one build, real and synthetic.

    Attributes:
        real: Real images, or None.
        synthetic: Images ``(n, C, H, W)`` float32 and labels ``(n,)``, or None.
        seed: Of every choice below.
    """

    real: ImageSet | None
    synthetic: tuple[Tensor, Tensor] | None
    seed: int

    @property
    def num_real(self) -> int:
        """Real images at hand."""
        return 0 if self.real is None else len(self.real)

    @property
    def num_synthetic(self) -> int:
        """Synthetic images at hand."""
        return 0 if self.synthetic is None else len(self.synthetic[0])

    @property
    def holds_out(self) -> bool:
        """Whether there are images enough to keep some from training."""
        return bool(self._num_held(self.num_real) or self._num_held(self.num_synthetic))

    def calibration_counts(self, calibrate_on: str) -> tuple[int, int]:
        """Returns how many (real, synthetic) images set the ranges.

        Raises:
            ConfigError: The kind that was asked for is not there.
        """
        most = MOST_CALIBRATION_IMAGES["small" if self._are_small() else "large"]
        real, synthetic = min(self.num_real, most), min(self.num_synthetic, most)
        if calibrate_on == "auto":
            calibrate_on = "real" if real >= ENOUGH_REAL or not synthetic else "both"
        if calibrate_on == "real":
            synthetic = 0
        elif calibrate_on == "synthetic":
            real = 0
        if real + synthetic == 0:
            raise ConfigError(
                f"--calibrate-on {calibrate_on}: there is no such image. Give --calib-data, or "
                "take another --recipe than none."
            )
        return real, synthetic

    @staticmethod
    def fewer(counts: tuple[int, int], most: int) -> tuple[int, int]:
        """Returns counts in about the same proportion, at most ``most`` together."""
        real, synthetic = counts
        if real + synthetic <= most:
            return counts
        kept = round(most * real / (real + synthetic))
        return kept, most - kept

    def _are_small(self) -> bool:
        if self.synthetic is not None:
            return max(self.synthetic[0].shape[2:]) <= SMALL_IMAGE_PX
        return self.real is None or max(self.real.preprocessing.shape[1:]) <= SMALL_IMAGE_PX

    def calibration_batches(self, counts: tuple[int, int], batch_size: int) -> Iterator[Tensor]:
        """Yields the images that set the ranges, ``(N, C, H, W)`` float32."""
        if self.real is not None and counts[0]:
            for images, _ in self.real.batches(batch_size, self._some(len(self.real), counts[0])):
                yield images
        if self.synthetic is not None and counts[1]:
            yield from torch.split(self.synthetic[0][: counts[1]], batch_size)

    def sample(self, count: int) -> Tensor:
        """Returns up to ``count`` images, real ones first, to round and correct layers on.

        None of them is held out: what is fitted to the images that judge it is always kept.
        """
        real, synthetic = map(self._num_usable, (self.num_real, self.num_synthetic))
        parts = []
        if self.real is not None:
            parts.append(self.real.load(self._some(len(self.real), min(count, real)))[0])
        if self.synthetic is not None and real < count:
            parts.append(self.synthetic[0][: min(synthetic, count - real)])
        return _joined(parts)

    def held_out(self) -> Tensor:
        """Returns the images that judge fine-tuning and that no step trains on.

        Where there are too few to hold any out (`holds_out`), all of them train and judge.
        """
        parts = []
        if self.real is not None and (held := self._num_held(len(self.real))):
            parts.append(self.real.load(self._order(len(self.real))[-held:])[0])
        if self.synthetic is not None and (held := self._num_held(self.num_synthetic)):
            parts.append(self.synthetic[0][-held:])
        return _joined(parts) if parts else self.sample(_MOST_HELD_OUT)

    def draws(self) -> list[Draw]:
        """Returns one batch source per kind of image, held-out ones excluded."""
        found: list[Draw] = []
        if self.real is not None:
            found.append(self._draw_real(self.real))
        if self.synthetic is not None:
            found.append(self._draw_synthetic(*self.synthetic))
        return found

    def _draw_real(self, real: ImageSet) -> Draw:
        order = self._order(len(real))
        usable = order[: self._num_usable(len(order))]

        def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            picked = torch.randint(len(usable), (count,), generator=generator)
            return real.load(usable[picked.numpy()])

        return draw

    def _draw_synthetic(self, images: Tensor, labels: Tensor) -> Draw:
        usable = self._num_usable(len(images))

        def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            picked = torch.randint(usable, (count,), generator=generator)
            return images[picked], labels[picked]

        return draw

    @staticmethod
    def _num_held(count: int) -> int:
        if count < _FEWEST_TO_HOLD_OUT:
            return 0
        return min(_MOST_HELD_OUT, int(count * _HELD_OUT_SHARE))

    @classmethod
    def _num_usable(cls, count: int) -> int:
        return count - cls._num_held(count)

    def _order(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.random.default_rng(self.seed).permutation(count).astype(np.int64)

    def _some(self, count: int, wanted: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Returns ``wanted`` indices; taken from the front of the order, held-out ones are last."""
        return np.sort(self._order(count)[:wanted])


def _joined(parts: list[Tensor]) -> Tensor:
    """Returns all images; those of one kind without a copy, which may be hundreds of megabytes."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
