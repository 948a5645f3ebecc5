"""FP8 E4M3 in NumPy: the reference for torch, ONNX Runtime and TensorRT.

One sign bit, four exponent bits with bias 7, three mantissa bits; no infinity, NaN is 0x7F and 0xFF
(Micikevicius et al., arXiv 2209.05433, and ONNX's FLOAT8E4M3FN). Rounding is half to even, and what
is beyond 448 saturates, as ONNX QuantizeLinear and TensorRT have it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fdda_deploy.quant.qparams import E4M3_MAX, FloatArray, QParams

SMALLEST_SCALE = 2.0**-14
"""Scales are no smaller, so that FP16 holds them as normal numbers (T005). E4M3 is floating point:
a tensor whose scale was raised keeps its relative precision down to 2^-6 scales."""
_MIN_EXPONENT = -6
_MANTISSA_BITS = 3
_BIAS = 7
_NAN = 0x7F
_SMALLEST = 2.0**-9


def round_to_e4m3(x: npt.ArrayLike) -> FloatArray:
    """Returns the nearest E4M3 numbers as float32, ties to even, beyond 448 saturated.

    Example:
        >>> round_to_e4m3([1.0625, 1.1875, 500.0]).tolist()
        [1.0, 1.25, 448.0]
    """
    values = np.clip(np.asarray(x, np.float32), -E4M3_MAX, E4M3_MAX)
    _, exponents = np.frexp(values)  # |x| in [2^(e-1), 2^e)
    steps = np.ldexp(np.float32(1), np.maximum(exponents - 1, _MIN_EXPONENT) - _MANTISSA_BITS)
    return np.asarray(np.rint(values / steps) * steps, np.float32)


def encode(x: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Returns the byte of the nearest E4M3 number of each value; NaN gives 0x7F.

    Example:
        >>> encode([0.0, 1.0, -448.0]).tolist()
        [0, 56, 254]
    """
    values = round_to_e4m3(x)
    magnitude = np.abs(values)
    _, exponents = np.frexp(np.where(magnitude == 0, np.float32(_SMALLEST), magnitude))
    exponents = np.maximum(exponents - 1, _MIN_EXPONENT)
    with np.errstate(invalid="ignore"):  # NaN gets its own code below
        eighths = np.ldexp(magnitude, _MANTISSA_BITS - exponents).astype(np.int32)
    # A normal number has 8 to 15 eighths: the leading 8 carries into the exponent field.
    codes = eighths + ((exponents + _BIAS - 1) << _MANTISSA_BITS)
    codes = np.where(np.isnan(values), _NAN, codes | (np.signbit(values).astype(np.int32) << 7))
    return codes.astype(np.uint8)


def decode(codes: npt.ArrayLike) -> FloatArray:
    """Returns the float32 value of each E4M3 byte.

    Example:
        >>> decode([0, 56, 254]).tolist()
        [0.0, 1.0, -448.0]
    """
    return _VALUES[np.asarray(codes, np.uint8)]


def qparams_from_amax(amax: npt.ArrayLike, axis: int | None = None) -> QParams:
    """Returns the E4M3 grid that represents ``amax``: ``scale = amax / 448``, at least 2^-14.

    Args:
        amax: Absolute maximum, ``()`` per tensor or ``(C,)`` per channel.
        axis: Channel axis; None per tensor.
    """
    scale = np.asarray(amax, np.float32) / np.float32(E4M3_MAX)
    return QParams(np.maximum(scale, np.float32(SMALLEST_SCALE)), -E4M3_MAX, E4M3_MAX, axis)


def _all_values() -> FloatArray:
    codes = np.arange(256)
    exponents = (codes >> _MANTISSA_BITS) & 15
    fraction = (codes & 7) / 8
    normal = np.ldexp(1 + fraction, exponents - _BIAS)
    magnitude = np.where(exponents == 0, np.ldexp(fraction, _MIN_EXPONENT), normal)
    magnitude = np.where(codes & _NAN == _NAN, np.nan, magnitude)
    return np.where(codes & 128, -magnitude, magnitude).astype(np.float32)


_VALUES = _all_values()
