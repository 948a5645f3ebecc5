"""How two calibrations differ, tensor by tensor: what one has alone, and the ratio of scales."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fdda_deploy.calib_cache.record import CalibrationRecord, TensorCalibration


@dataclass(frozen=True)
class TensorDifference:
    """One tensor that both calibrations have, and not with the same grid.

    Attributes:
        tensor: Its name.
        ratio: Second scale over first; of several the one farthest from 1. 1 where the integer
            range alone differs; None where one side was never excited, or the shapes differ.
        reason: ``scale``, ``integer range``, ``shape`` or ``unexcited``.
    """

    tensor: str
    ratio: float | None
    reason: str


@dataclass(frozen=True)
class Difference:
    """What `compare` found.

    Attributes:
        only_first: Tensors that the second calibration lacks, in order.
        only_second: Tensors that the first lacks, in order.
        changed: The others that differ, the farthest scales first.
        common: How many tensors both have.
    """

    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    changed: tuple[TensorDifference, ...]
    common: int

    @property
    def same(self) -> bool:
        """Both have the same tensors with the same grids, within the tolerance asked for."""
        return not (self.only_first or self.only_second or self.changed)


def compare(
    first: CalibrationRecord, second: CalibrationRecord, tolerance: float = 0.0
) -> Difference:
    """Returns how ``second`` differs from ``first``.

    Args:
        first: One calibration.
        second: Another.
        tolerance: Scales count as the same whose ratio is within ``1 + tolerance`` either way; 0
            wants the same float32 bits.
    """
    names = [_names(record) for record in (first, second)]
    common = [name for name in names[0] if name in names[1]]
    found = (_difference(name, first, second, tolerance) for name in common)
    changed = [entry for entry in found if entry is not None]
    changed.sort(key=lambda entry: (-_distance(entry.ratio), entry.tensor))
    return Difference(
        tuple(name for name in names[0] if name not in names[1]),
        tuple(name for name in names[1] if name not in names[0]),
        tuple(changed),
        len(common),
    )


def _names(record: CalibrationRecord) -> dict[str, None]:
    return dict.fromkeys([*record.tensors, *record.unexcited])


def _difference(
    name: str, first: CalibrationRecord, second: CalibrationRecord, tolerance: float
) -> TensorDifference | None:
    a, b = first.tensors.get(name), second.tensors.get(name)
    if a is None or b is None:
        both_idle = a is None and b is None
        return None if both_idle else TensorDifference(name, None, "unexcited")
    if a.qparams.scale.shape != b.qparams.scale.shape:
        return TensorDifference(name, None, "shape")
    ratio = _farthest_ratio(a, b)
    if _distance(ratio) > math.log1p(tolerance):
        return TensorDifference(name, ratio, "scale")
    if _integers(a) != _integers(b):
        return TensorDifference(name, ratio, "integer range")
    return None


def _farthest_ratio(a: TensorCalibration, b: TensorCalibration) -> float:
    """Returns the ratio of scales that is farthest from 1; double precision tells float32 apart."""
    ratios = b.qparams.scale.astype(np.float64) / a.qparams.scale.astype(np.float64)
    flat = ratios.reshape(-1)
    return float(flat[np.argmax(np.abs(np.log(flat)))])


def _distance(ratio: float | None) -> float:
    return math.inf if ratio is None else abs(math.log(ratio))


def _integers(tensor: TensorCalibration) -> tuple[int | None, ...]:
    grid = tensor.qparams
    return grid.qmin, grid.qmax, grid.zero_point, grid.axis, grid.block_size
