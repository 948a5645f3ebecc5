"""Weight scales that FP16 can hold: a channel whose scale is too small moves to a coarser one.

FP16 has no normal number below 2^-14, and TensorRT takes no other scale (T005). Channels of so
small weights are few and dead or nearly so; to leave their whole layer in FP32 would part it from
its neighbours. On the raised scale no weight moves by more than 2^-15, less than half a step of any
channel whose largest weight is 0.008.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from fdda_deploy.exporters.half_table import HALF_TINY, Array
from fdda_deploy.exporters.stored import stored

_STORAGE = {TensorProto.INT8: "int8", TensorProto.INT4: "int4"}


def raise_small_scales(
    node: onnx.NodeProto, initializers: dict[str, TensorProto], readers: Mapping[str, int]
) -> int:
    """Gives a weight's DequantizeLinear scales of at least 2^-14, and integers that match them.

    Args:
        node: Any DequantizeLinear; left alone where its integers or scales are no constants, where
            others read them too, and where the zero-point is not 0.
        initializers: By name; what changes is replaced by a new tensor.
        readers: How many nodes read each tensor.

    Returns:
        How many scales were raised.
    """
    held, scales = initializers.get(node.input[0]), initializers.get(node.input[1])
    if held is None or scales is None or held.data_type not in _STORAGE:
        return 0
    if readers[held.name] > 1 or readers[scales.name] > 1 or _shifted(node, initializers):
        return 0
    scale = np.asarray(numpy_helper.to_array(scales), np.float32)
    small = int((scale < HALF_TINY).sum())
    if not small:
        return 0
    raised = np.maximum(scale, np.float32(HALF_TINY))
    x_int = np.asarray(numpy_helper.to_array(held)).astype(np.float32)
    ratio = _spread(node, np.asarray(scale / raised, np.float32), x_int.shape)
    values = np.rint(x_int * ratio).astype(np.int8)
    initializers[held.name] = stored(held.name, values, _STORAGE[held.data_type])
    initializers[scales.name] = numpy_helper.from_array(raised, scales.name)
    return small


def _shifted(node: onnx.NodeProto, initializers: dict[str, TensorProto]) -> bool:
    """Whether the zero-point may be another than 0."""
    if len(node.input) < 3 or not node.input[2]:
        return False
    zero_point = initializers.get(node.input[2])
    return zero_point is None or bool(np.asarray(numpy_helper.to_array(zero_point)).any())


def _spread(node: onnx.NodeProto, ratio: Array, shape: tuple[int, ...]) -> Array:
    """Returns one ratio per channel or block as an array that broadcasts over the integers."""
    attributes = {a.name: a.i for a in node.attribute if a.name in {"axis", "block_size"}}
    axis = attributes.get("axis", 1) % max(1, len(shape))
    if attributes.get("block_size"):
        return np.repeat(ratio, attributes["block_size"], axis=axis)
    if ratio.size == 1:
        return ratio.reshape(())
    return ratio.reshape([-1 if index == axis else 1 for index in range(len(shape))])
