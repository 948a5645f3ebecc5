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
    """The images of one build, those given and those made.

    Attributes:
        given: Real images, or ones that were synthesized before; None for none.
        made: Images ``(n, C, H, W)`` float32 and labels ``(n,)`` that this build synthesized.
        seed: Of every choice below.
    """

    given: ImageSet | None
    made: tuple[Tensor, Tensor] | None
    seed: int

    @property
    def num_given(self) -> int:
        """Images that were given."""
        return 0 if self.given is None else len(self.given)

    @property
    def num_made(self) -> int:
        """Images that this build made."""
        return 0 if self.made is None else len(self.made[0])

    @property
    def holds_out(self) -> bool:
        """Whether there are images enough to keep some from training."""
        return bool(self._num_held(self.num_given) or self._num_held(self.num_made))

    @property
    def given_are_real(self) -> bool:
        """Whether images were given, by no recipe."""
        return self.given is not None and self.given.recipe is None

    def calibration_counts(self, calibrate_on: str) -> tuple[int, int]:
        """Returns how many images (given, made) set the ranges.

        Raises:
            ConfigError: The kind that was asked for is not there.
        """
        most = MOST_CALIBRATION_IMAGES["small" if self._are_small() else "large"]
        given, made = min(self.num_given, most), min(self.num_made, most)
        enough = self.given_are_real and given >= ENOUGH_REAL
        if calibrate_on == "real" or (calibrate_on == "auto" and enough):
            made = 0
        if calibrate_on == ("synthetic" if self.given_are_real else "real"):
            given = 0
        if given + made == 0:
            synthesized = self.given is not None and self.given.recipe
            raise ConfigError(
                f"--calibrate-on {calibrate_on}: there is no such image. "
                + (
                    f"Recipe {synthesized} made those of --calib-data: take synthetic."
                    if synthesized
                    else "Give --calib-data, or take another --recipe than none."
                )
            )
        return given, made

    def by_kind(self, counts: tuple[int, int]) -> tuple[int, int]:
        """Returns as (real, synthetic) what is (given, made): given ones may be synthetic too."""
        given, made = counts
        return (given, made) if self.given_are_real else (0, given + made)

    @staticmethod
    def fewer(counts: tuple[int, int], most: int) -> tuple[int, int]:
        """Returns counts in about the same proportion, at most ``most`` together."""
        given, made = counts
        if given + made <= most:
            return counts
        kept = round(most * given / (given + made))
        return kept, most - kept

    def _are_small(self) -> bool:
        if self.made is not None:
            return max(self.made[0].shape[2:]) <= SMALL_IMAGE_PX
        return self.given is None or max(self.given.preprocessing.shape[1:]) <= SMALL_IMAGE_PX

    def calibration_batches(self, counts: tuple[int, int], batch_size: int) -> Iterator[Tensor]:
        """Yields the images that set the ranges, ``(N, C, H, W)`` float32."""
        if self.given is not None and counts[0]:
            for images, _ in self.given.batches(batch_size, self._some(len(self.given), counts[0])):
                yield images
        if self.made is not None and counts[1]:
            yield from torch.split(self.made[0][: counts[1]], batch_size)

    def sample(self, count: int) -> Tensor:
        """Returns up to ``count`` images, given ones first, to round and correct layers on.

        None of them is held out: what is fitted to the images that judge it is always kept.
        """
        given, made = map(self._num_usable, (self.num_given, self.num_made))
        parts = []
        if self.given is not None:
            parts.append(self.given.load(self._some(len(self.given), min(count, given)))[0])
        if self.made is not None and given < count:
            parts.append(self.made[0][: min(made, count - given)])
        return _joined(parts)

    def held_out(self) -> Tensor:
        """Returns the images that judge fine-tuning and that no step trains on.

        Where there are too few to hold any out (`holds_out`), all of them train and judge.
        """
        parts = []
        if self.given is not None and (held := self._num_held(len(self.given))):
            parts.append(self.given.load(self._order(len(self.given))[-held:])[0])
        if self.made is not None and (held := self._num_held(self.num_made)):
            parts.append(self.made[0][-held:])
        return _joined(parts) if parts else self.sample(_MOST_HELD_OUT)

    def draws(self) -> list[Draw]:
        """Returns one batch source per kind of image, held-out ones excluded."""
        found: list[Draw] = []
        if self.given is not None:
            found.append(self._draw_given(self.given))
        if self.made is not None:
            found.append(self._draw_made(*self.made))
        return found

    def _draw_given(self, given: ImageSet) -> Draw:
        order = self._order(len(given))
        usable = order[: self._num_usable(len(order))]

        def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            picked = torch.randint(len(usable), (count,), generator=generator)
            return given.load(usable[picked.numpy()])

        return draw

    def _draw_made(self, images: Tensor, labels: Tensor) -> Draw:
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
