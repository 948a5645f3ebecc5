"""Tables that hold 127/amax where amax/127 belongs: told by what no network can do, and repaired.

Three tests, the sharpest that can be made first. Each is built so that a sound table passes:

1. **Bounds** of the graph, where a model is at hand: behind a Softmax or a Clip(0, 6) no range can
   exceed 1 or 6, and no calibrator settles on more than the largest value it saw. Inverted, such a
   tensor claims at least ``127**2 / bound``.
2. **Names**: a tensor that calls itself the output of a softmax or a sigmoid, with a range beyond
   +-1016.
3. **All of them**: no range within +-255, and most beyond +-1016. A sound table of a network that
   sees images cannot be so, because its input is one of the tensors, and pixels end at 255. An
   inverted table is so when no tensor of the network exceeds 63 and most stay below 16.

What slips through without a model: inverted tables of networks with a range beyond 63 somewhere.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Mapping

import numpy as np

from fdda_deploy.calib_cache.record import CalibrationRecord, TensorCalibration
from fdda_deploy.calib_cache.record_json import shown
from fdda_deploy.calib_cache.trt_table import LEVELS, eight_bit_scale
from fdda_deploy.errors import CalibrationError
from fdda_deploy.quant.qparams import SMALLEST_SCALE, QParams

PIXEL_SCALE = 255 / LEVELS
"""Scale of a raw 8-bit image: every network for images has one tensor at or below it."""
MAX_PLAUSIBLE_SCALE = 8.0
"""Beyond it a range exceeds +-1016."""
SLACK = 8.0
"""A range this many times a known bound is no rounding of a calibrator."""
DECISIVE_BOUND = LEVELS / SLACK**0.5
"""Above it even an inverted scale, ``127 / bound`` or more, may lie within the slack."""
_BOUNDED_BY_NAME = re.compile(
    r"(^|[^a-z])(hard)?(softmax|sigmoid)(_\d+)?(_output)?(_\d+)?$", re.IGNORECASE
)


def evidence(scales: Mapping[str, float], bounds: Mapping[str, float] | None = None) -> str | None:
    """Returns why ``scales`` must be 127/amax, None where nothing says so.

    Args:
        scales: Real units per integer step by tensor; zeros are skipped.
        bounds: Largest absolute value that a tensor can have in the graph; see
            ``exporters.known_ranges``.
    """
    excited = {name: float(scale) for name, scale in scales.items() if scale > 0}
    bounded = {
        name: bound
        for name, bound in (bounds or {}).items()
        if name in excited and bound < DECISIVE_BOUND
    }
    broken = [n for n, bound in bounded.items() if LEVELS * excited[n] > SLACK * bound]
    if broken and 2 * len(broken) > len(bounded):
        return _beyond(broken[0], excited, f"where the graph allows +-{bounded[broken[0]]:.6g}")
    for name, scale in excited.items():
        leaf = name.replace(":", "/").rsplit("/", 1)[-1]
        by_name = _BOUNDED_BY_NAME.search(leaf) and "log" not in leaf.lower()
        if scale > MAX_PLAUSIBLE_SCALE and by_name:
            return _beyond(name, excited, "where its name says +-1")
    if not excited or bounded:
        return None
    beyond_pixels = min(excited.values()) > PIXEL_SCALE
    if beyond_pixels and statistics.median_low(excited.values()) > MAX_PLAUSIBLE_SCALE:
        smallest = min(excited, key=lambda name: excited[name])
        return _beyond(smallest, excited, "and that is the smallest of all")
    return None


def refuse_inverted(scales: Mapping[str, float], bounds: Mapping[str, float] | None = None) -> None:
    """Raises where there is `evidence`.

    Raises:
        CalibrationError: Says which tensor shows it, whether the reciprocal fits, and what to do.
    """
    reason = evidence(scales, bounds)
    if reason is None:
        return
    inverse = {name: 1 / scale for name, scale in scales.items() if scale > 0}
    if evidence(inverse, bounds) is not None:
        raise CalibrationError(
            f"calibration table: {reason}, and 127/amax does not fit either: it is the table of "
            "another network. Give the one that was calibrated on this network."
        )
    raise CalibrationError(
        f"calibration table: {reason}: it seems to hold 127/amax where TensorRT wants amax/127. "
        "Give --inverted to read it so, or write it again with the reciprocals."
    )


def reciprocal(
    record: CalibrationRecord, bounds: Mapping[str, float] | None = None
) -> CalibrationRecord:
    """Returns ``record`` with every activation's scale s replaced by 1/s, nearest float32.

    Raises:
        CalibrationError: A scale whose reciprocal no grid can hold, or a table that is inverted
            only after this.
    """
    tensors = {name: _reciprocal(name, tensor) for name, tensor in record.tensors.items()}
    turned = dataclasses.replace(record, tensors=tensors)
    reason = evidence(activation_scales(turned), bounds)
    if reason is not None:
        raise CalibrationError(
            f"calibration table: with --inverted, {reason}: the table holds amax/127, as it "
            "should. Leave out --inverted."
        )
    return turned


def activation_scales(record: CalibrationRecord) -> dict[str, float]:
    """Returns the 8-bit scale of every activation that has one alone, whatever its own width."""
    return {
        name: float(eight_bit_scale(tensor.qparams))
        for name, tensor in record.tensors.items()
        if tensor.role == "activation" and tensor.qparams.scale.ndim == 0
    }


def _beyond(name: str, scales: Mapping[str, float], limit: str) -> str:
    return (
        f"{shown(name)} has scale {scales[name]:.6g}, a range of +-{LEVELS * scales[name]:.6g}, "
        f"{limit}"
    )


def _reciprocal(name: str, tensor: TensorCalibration) -> TensorCalibration:
    qparams = tensor.qparams
    if tensor.role != "activation" or qparams.scale.ndim:
        return tensor
    with np.errstate(over="ignore", under="ignore"):
        scale = np.float32(1 / np.float64(qparams.scale))
    if not SMALLEST_SCALE <= scale < np.inf:
        raise CalibrationError(
            f"{shown(name)}: scale {float(qparams.scale):.6g} has no reciprocal that TensorRT can "
            "use. Leave out --inverted, or remove this tensor."
        )
    turned = QParams(
        np.asarray(scale, np.float32), qparams.qmin, qparams.qmax, None, qparams.zero_point
    )
    return dataclasses.replace(tensor, qparams=turned, amax=float(scale) * qparams.qmax)
