"""4-bit tensors in ONNX: two values a byte, the first in the low nibble."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

from fdda_deploy.errors import ExportError


def pack_int4(values: npt.NDArray[np.int8]) -> bytes:
    """Returns ``values`` (any shape, each in [-8, 7]) as packed two's-complement nibbles.

    Raises:
        ExportError: A value outside the range, or an odd number of elements (rule T012).

    Example:
        >>> pack_int4(np.int8([1, -1])).hex()
        'f1'
    """
    flat = values.reshape(-1)
    if flat.size and (flat.min() < -8 or flat.max() > 7):
        raise ExportError(f"INT4 holds -8 to 7, got {flat.min()} to {flat.max()}.")
    if flat.size % 2:
        raise ExportError(f"INT4 tensors have an even element count (T012), got {flat.size}.")
    nibbles = flat.astype(np.uint8) & 0x0F
    return bytes((nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8).tobytes())


def int4_initializer(name: str, values: npt.NDArray[np.int8]) -> onnx.TensorProto:
    """Returns an INT4 initializer of ``values``."""
    return onnx.TensorProto(
        name=name,
        data_type=onnx.TensorProto.INT4,
        dims=values.shape,
        raw_data=pack_int4(values),
    )
