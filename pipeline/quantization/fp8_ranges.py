"""FP8 grids from what a tensor holds: the scale covers the largest value, ``amax / 448``.

Floating point keeps its relative precision over 15 octaves, so there is nothing to win by clipping
and no range to search.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fdda_deploy.pipeline.quantization.observers import MinMaxObserver
from fdda_deploy.quant import fp8
from fdda_deploy.quant.qparams import QParams


class Fp8Observer(MinMaxObserver):
    """Keeps the extremes of one activation tensor, batch by batch."""

    def qparams(self, num_bits: int) -> QParams:  # noqa: ARG002  # E4M3 has 8
        """Returns the E4M3 grid that covers every value seen.

        Raises:
            CalibrationError: Nothing was seen.
        """
        self.require_images()
        return fp8.qparams_from_amax(max(abs(self.low), abs(self.high)))


def fp8_weight_qparams(weight: npt.NDArray[np.float32], axis: int) -> QParams:
    """Returns the E4M3 grid of a weight, one scale per channel of ``axis``."""
    others = tuple(index for index in range(weight.ndim) if index != axis)
    return fp8.qparams_from_amax(np.abs(weight).max(axis=others), axis)
