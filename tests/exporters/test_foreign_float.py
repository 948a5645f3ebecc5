"""Anyone's float ONNX file becomes one that can be quantized, and computes the same."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from table_graphs import foreign, images, run

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.foreign_float import prepared


@pytest.fixture(scope="module")
def tidy() -> onnx.ModelProto:
    return prepared(foreign())


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def edited(model: onnx.ModelProto, **graph: object) -> onnx.ModelProto:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for field, values in graph.items():
        getattr(copy.graph, field).extend(values)
    return copy


def test_the_prepared_graph_computes_what_the_original_does(tidy: onnx.ModelProto) -> None:
    (before,) = run(foreign(), images(), "logits")
    (after,) = run(tidy, images(), "logits")
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()


def test_norms_and_constants_are_gone_and_names_of_tensors_stay(tidy: onnx.ModelProto) -> None:
    assert kinds(tidy) == ["Conv", "Clip", "Conv", "Add", "Relu", "GlobalAveragePool",
                           "Flatten", "Gemm"]  # fmt: skip
    assert [node.output[0] for node in tidy.graph.node] == [
        *("x1", "x2", "x4", "x5", "x6", "pooled", "flat", "logits")
    ]


def test_versions_are_pinned_and_nodes_have_names_of_their_own(tidy: onnx.ModelProto) -> None:
    assert tidy.opset_import[0].version == 21
    assert tidy.ir_version == 10
    names = [node.name for node in tidy.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_weights_are_no_inputs_any_more(tidy: onnx.ModelProto) -> None:
    assert [value.name for value in tidy.graph.input] == ["image"]
    used = {tensor for node in tidy.graph.node for tensor in node.input}
    assert {tensor.name for tensor in tidy.graph.initializer} <= used


def test_a_norm_with_a_negative_variance_stays() -> None:
    result = prepared(_with("bn1.var", -np.ones(16)))
    assert kinds(result).count("BatchNormalization") == 1


def test_the_original_is_left_as_it_is() -> None:
    model = foreign()
    before = model.SerializeToString()
    prepared(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21, 22])
def test_other_opsets_come_to_21_or_stay(opset: int) -> None:
    model = foreign(opset if opset >= 11 else 11, listed=False)
    if opset < 11:  # before 11 the ends of Clip are attributes
        model = _with_clip_attributes(model, opset)
    result = prepared(model)
    assert result.opset_import[0].version == max(opset, 21)
    onnx.checker.check_model(result)
    (before,), (after,) = run(foreign(), images(), "logits"), run(result, images(), "logits")
    assert np.allclose(before, after, atol=1e-4)


def _with_clip_attributes(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    clip = next(node for node in nodes if node.op_type == "Clip")
    del clip.input[1:]
    clip.attribute.extend([helper.make_attribute("min", 0.0), helper.make_attribute("max", 6.0)])
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.opset_import[0].version = opset
    return model


def test_a_norm_whose_input_others_read_stays() -> None:
    model = foreign()
    skip = helper.make_node("Add", ["x3", "x3"], ["again"])
    out = helper.make_tensor_value_info("again", TensorProto.FLOAT, ["N", 16, 8, 8])
    result = prepared(edited(model, node=[skip], output=[out]))
    assert kinds(result).count("BatchNormalization") == 1


def test_a_weight_that_two_layers_share_is_folded_into_one_of_them_alone() -> None:
    model = foreign()
    twin = helper.make_node("Conv", ["image", "w0"], ["twin"], pads=[1, 1, 1, 1])
    out = helper.make_tensor_value_info("twin", TensorProto.FLOAT, ["N", 16, 8, 8])
    shared = edited(model, node=[twin], output=[out])
    result = prepared(shared)
    for tensor in ("logits", "twin"):
        (before,), (after,) = run(shared, images(), tensor), run(result, images(), tensor)
        assert np.allclose(before, after, atol=1e-4)


def test_transposed_convolutions_are_folded_along_their_own_axis() -> None:
    rng = np.random.default_rng(0)
    values = {"w": rng.normal(size=(3, 4, 2, 2)), "b": rng.normal(size=4)}
    values |= {name: rng.uniform(0.5, 2, 4) for name in ("gamma", "beta", "mean", "var")}
    nodes = [
        helper.make_node("ConvTranspose", ["image", "w", "b"], ["up"]),
        helper.make_node("BatchNormalization", ["up", "gamma", "beta", "mean", "var"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "up",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 9, 9])],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in values.items()],
    )
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    result = prepared(model)
    assert kinds(result) == ["ConvTranspose"]
    (before,), (after,) = run(model, images(), "y"), run(result, images(), "y")
    assert np.allclose(before, after, atol=1e-5)


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        if tensor.name in {"fc", "fc.bias", "w0"}:
            value = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


def _opset(version: int) -> onnx.ModelProto:
    model = foreign(21, listed=False)
    model.opset_import[0].version = version
    return model


def _quantized() -> onnx.ModelProto:
    scale = numpy_helper.from_array(np.float32(0.1), "scale")
    node = helper.make_node("QuantizeLinear", ["image", "scale"], ["q"], name="quantize")
    return edited(foreign(13, listed=False), node=[node], initializer=[scale])


def _with(name: str, value: np.ndarray) -> onnx.ModelProto:
    """The graph with other numbers in one of its initializers."""
    model = foreign(21, listed=False)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    return model


def _too_long() -> onnx.ModelProto:
    model = foreign(21, listed=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "fc")
    tensor.raw_data += bytes(4)
    return model


REFUSED = {
    "too much data": (_too_long(), r"fc: the tensor's data does not match its shape \[5, 16\]"),
    "flat filter": (_with("w1", np.ones((16, 16))), r"x3 \(Conv\): 1 groups, weight of shape"),
    "other bias": (_with("fc.bias", np.ones(7)), r"bias of shape \[7\] for 5 channels"),
    "no nodes": (onnx.ModelProto(ir_version=8), "has no nodes"),
    "not sound": (edited(foreign(), node=[helper.make_node("Relu", ["?"], ["y"])]), "not sound"),
    "quantized": (_quantized(), "quantize: QuantizeLinear: the graph is quantized already"),
    "half precision": (_half(foreign()), r"x0 \(Conv\): weight w0 has type FLOAT16, want FLOAT"),
    "too new": (_opset(26), "opset 26: TensorRT reads up to 25. Export the network with opset 21"),
}


@pytest.mark.parametrize(("model", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_prepared_is_refused_with_the_next_step(
    model: onnx.ModelProto, message: str
) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        prepared(model)
    assert "\n" not in str(caught.value)


SOUND = foreign().SerializeToString()


@pytest.mark.fuzz
@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1))
def test_a_damaged_file_is_prepared_or_refused(flips: list[tuple[int, int]]) -> None:
    data = bytearray(SOUND)
    for at, value in flips:
        data[at] = value
    result = None
    with suppress(ExportError, DecodeError):
        result = prepared(onnx.ModelProto.FromString(bytes(data)))
    assert result is None or result.graph.node
