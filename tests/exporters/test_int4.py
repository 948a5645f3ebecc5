"""4-bit packing: what goes in comes out, and ONNX Runtime reads the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.int4 import int4_initializer, pack_int4
from fdda_deploy.quant.affine import dequantize
from fdda_deploy.quant.qparams import QParams

NIBBLES = npst.arrays(
    np.int8,
    st.tuples(st.integers(1, 5), st.integers(1, 4).map(lambda n: 2 * n)),
    elements=st.integers(-8, 7),
)


@given(NIBBLES)
def test_packing_and_unpacking_is_the_identity(values):
    packed = pack_int4(values)
    assert len(packed) * 2 == values.size
    np.testing.assert_array_equal(_unpacked(packed, values.shape), values)


def test_first_element_is_the_low_nibble():
    assert pack_int4(np.int8([7, -8])) == bytes([0x87])


@given(NIBBLES)
def test_onnx_reads_the_packed_tensor_as_the_same_integers(values):
    tensor = int4_initializer("w", values)
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), values)


@settings(max_examples=15, deadline=None)
@given(NIBBLES, st.booleans())
def test_onnx_runtime_dequantizes_it_as_numpy_does(values, blocked):
    rows, columns = values.shape
    if blocked:
        scale = np.linspace(0.1, 3, rows * (columns // 2), dtype=np.float32).reshape(rows, -1)
        grid = QParams(scale, -8, 7, axis=1, block_size=2)
        attributes = {"axis": 1, "block_size": 2}
    else:
        grid = QParams(np.linspace(0.1, 3, rows, dtype=np.float32), -8, 7, axis=0)
        attributes = {"axis": 0}
    model = _dequantize_model(int4_initializer("w", values), grid.scale, attributes)
    np.testing.assert_array_equal(_run(model), dequantize(values, grid))


def test_value_beyond_four_bits_is_refused_with_the_range():
    with pytest.raises(ExportError, match=r"INT4 holds -8 to 7, got -9 to 3"):
        pack_int4(np.int8([-9, 3]))


def test_odd_number_of_elements_is_refused_by_its_rule():
    with pytest.raises(ExportError, match=r"even element count \(T012\), got 3"):
        pack_int4(np.int8([[1, 2, 3]]))


def _unpacked(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    packed = np.frombuffer(data, dtype=np.uint8)
    nibbles = np.stack([packed & 0x0F, packed >> 4], axis=1).reshape(-1).astype(np.int8)
    return np.where(nibbles > 7, nibbles - 16, nibbles).reshape(shape)


def _dequantize_model(
    tensor: TensorProto, scale: np.ndarray, attributes: dict[str, int]
) -> onnx.ModelProto:
    node = helper.make_node("DequantizeLinear", ["w", "scale"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "int4",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(tensor.dims))],
        [tensor, numpy_helper.from_array(scale, "scale")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model


def _run(model: onnx.ModelProto) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {})[0]
