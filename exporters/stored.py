"""Integers and FP8 codes as ONNX initializers of the type that they are stored in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from fdda_deploy.exporters.int4 import int4_initializer


def stored(name: str, values: npt.NDArray[np.int8], storage: str) -> onnx.TensorProto:
    """Returns an initializer of ``values``.

    Args:
        name: Of the initializer.
        values: Integers, or with ``fp8`` the bytes of E4M3 numbers.
        storage: ``int8``, ``int4`` (two a byte; an even count) or ``fp8``.

    Raises:
        ExportError: INT4 values out of range, or an odd number of them.
    """
    if storage == "int4":
        return int4_initializer(name, values)
    if storage == "fp8":
        return onnx.TensorProto(
            name=name,
            data_type=onnx.TensorProto.FLOAT8E4M3FN,
            dims=values.shape,
            raw_data=values.tobytes(),
        )
    return numpy_helper.from_array(values, name)
