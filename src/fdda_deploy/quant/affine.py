"""Affine quantization in NumPy: the reference for torch, ONNX Runtime and TensorRT.

Rounding is half to even, division is by the float32 scale (never by its reciprocal), and integers
saturate: exactly what ONNX QuantizeLinear and TensorRT do, so every other implementation is tested
against this file.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fdda_deploy.errors import CalibrationError
from fdda_deploy.quant import fp8
from fdda_deploy.quant.qparams import SMALLEST_SCALE, FloatArray, QParams


def signed_range(num_bits: int) -> tuple[int, int]:
    """Returns the signed integer range of ``num_bits``, for instance (-8, 7) for 4.

    Raises:
        CalibrationError: ``num_bits`` is outside 2 to 8.
    """
    if not 2 <= num_bits <= 8:
        raise CalibrationError(f"{num_bits} bits: an integer grid has 2 to 8.")
    return -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1


def qparams_from_amax(amax: npt.ArrayLike, num_bits: int = 8, axis: int | None = None) -> QParams:
    """Returns symmetric parameters that represent ``amax``: ``scale = amax / qmax``.

    Args:
        amax: Absolute maximum, ``()`` per tensor or ``(C,)`` per channel; 0 (a dead channel) gets
            a scale of ``1 / qmax``, which represents its zeros exactly.
        num_bits: 2 to 8; the divisor is 127 for 8 bits, never 127.5.
        axis: Channel axis; None per tensor.

    Example:
        >>> float(qparams_from_amax(2.54).scale)
        0.019999999552965164
    """
    qmin, qmax = signed_range(num_bits)
    amax_array = np.asarray(amax, dtype=np.float32)
    amax_array = np.where(amax_array < SMALLEST_SCALE * qmax, np.float32(1.0), amax_array)
    return QParams((amax_array / np.float32(qmax)).astype(np.float32), qmin, qmax, axis)


def quantize(x: npt.ArrayLike, qparams: QParams) -> npt.NDArray[np.int8]:
    """Returns ``clip(round(x / scale) + zero_point, qmin, qmax)`` as int8, the shape of ``x``.

    On an FP8 grid the int8 holds the byte of the nearest E4M3 number.

    Example:
        >>> quantize(np.float32([-9, 0.5, 1.5, 9]), QParams(np.float32(1), -8, 7)).tolist()
        [-8, 0, 2, 7]
    """
    x_array = np.asarray(x, dtype=np.float32)
    with np.errstate(over="ignore"):  # a quotient beyond float32 is infinite, and saturates
        x_scaled = x_array / qparams.scale_for(x_array.shape)
    if qparams.float8:
        return fp8.encode(x_scaled).view(np.int8)
    x_scaled = np.rint(x_scaled) + np.float32(qparams.zero_point)
    x_int: npt.NDArray[np.int8] = np.clip(x_scaled, qparams.qmin, qparams.qmax).astype(np.int8)
    return x_int


def dequantize(x_int: npt.ArrayLike, qparams: QParams) -> FloatArray:
    """Returns ``(x_int - zero_point) * scale`` as float32, the shape of ``x_int``.

    On an FP8 grid ``x_int`` holds E4M3 bytes, as `quantize` returns them.

    Example:
        >>> dequantize(np.int8([-8, 2]), QParams(np.float32(0.5), -8, 7)).tolist()
        [-4.0, 1.0]
    """
    if qparams.float8:
        x_array = fp8.decode(np.asarray(x_int, np.int8).view(np.uint8))
    else:
        x_array = np.asarray(x_int).astype(np.float32) - np.float32(qparams.zero_point)
    return (x_array * qparams.scale_for(x_array.shape)).astype(np.float32)


def fake_quant(x: npt.ArrayLike, qparams: QParams) -> FloatArray:
    """Returns ``dequantize(quantize(x))``: the nearest value on the grid, in float32.

    Example:
        >>> fake_quant(np.float32([0.26]), QParams(np.float32(0.5), -8, 7)).tolist()
        [0.5]
    """
    return dequantize(quantize(x, qparams), qparams)
