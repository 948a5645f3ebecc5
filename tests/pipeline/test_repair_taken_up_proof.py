"""Zero-points that biases took up are proved, and refused where a bias took up another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.repair.repairing import Repaired, repair
from fdda_deploy.pipeline.repair_proof import Proof, proved

C = 8
FEED = {"x": np.random.default_rng(3).standard_normal((4, C, 8, 8)).astype(np.float32)}
STEP = np.float32(0.04)
Edit = Callable[[np.ndarray], np.ndarray]


def foreign(zero: int, scale: float = STEP) -> onnx.ModelProto:
    """x -> Conv "maker" -> UINT8 pair with a zero-point -> 1x1 Conv "reader"."""
    rng = np.random.default_rng(0)
    held: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: np.ndarray | np.generic) -> str:
        held.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(kind: str, inputs: Sequence[str], name: str) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], f"{name}_node"))
        return name

    def pair(x: str, grid: list[str]) -> str:
        return op(
            "DequantizeLinear", [op("QuantizeLinear", [x, *grid], f"{x}_q"), *grid], f"{x}_dq"
        )

    def layer(x: str, size: int, name: str) -> str:
        weight = rng.normal(0, 0.12, (C, C, size, size)).astype(np.float32)
        bias = rng.normal(0, 0.3, C).astype(np.float32)
        return op("Conv", [x, constant(f"{name}_w", weight), constant(f"{name}_b", bias)], name)

    x_grid = [constant("x_scale", np.float32(0.03)), constant("x_zero", np.int8(0))]
    grid = [constant("scale", np.float32(scale)), constant("zero", np.uint8(zero))]
    layer(pair(layer(pair("x", x_grid), 3, "maker"), grid), 1, "reader")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", C, size, size])
        for name, size in (("x", 8), ("reader", 6))
    ]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def proof_of(model: onnx.ModelProto, repaired: Repaired) -> Proof:
    return proved(model, repaired, "trt", FEED, "", None)


@pytest.mark.parametrize("zero", [0, 100, 127, 255], ids=["ReLU", "skewed", "by one", "negative"])
def test_a_zero_point_taken_up_is_the_same_network_on_the_same_grid(zero: int) -> None:
    model = foreign(zero)
    repaired = repair(model, target="trt")
    assert any("taken up" in change.what for change in repaired.applied)
    proof = proof_of(model, repaired)
    # a sum on a tie may round the other way, and then counts for a step of one number
    assert proof.outputs["reader"].relative_l2 < 5e-3
    assert proof.against_float is not None
    assert proof.against_float.grids == 1
    assert proof.against_float.worst_grid is not None
    assert proof.against_float.worst_grid < 1.001
    assert proof.against_float.twins["reader"] < 1e-5


def test_a_relu6_that_its_grid_stood_for_stays_one() -> None:
    model = foreign(0, 6 / 255)
    proof = proof_of(model, repair(model, target="trt"))
    assert proof.against_float is not None
    assert proof.against_float.twins["reader"] < 1e-5


def change(model: onnx.ModelProto, name: str, edit: Edit) -> None:
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name.startswith(name)]
    value = edit(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))


def always(value: np.ndarray) -> Edit:
    return lambda _: value


def back(model: onnx.ModelProto, *biases: str) -> None:
    """Gives biases the values that they had before the repair."""
    for tensor in foreign(0).graph.initializer:
        if tensor.name.removesuffix("_b") in biases:
            change(model, tensor.name, always(numpy_helper.to_array(tensor)))


def consistently(model: onnx.ModelProto, steps: float) -> None:
    """Shifts maker and reader by some steps more: the same network, on another grid."""
    (weight,) = [t for t in model.graph.initializer if t.name == "reader_w"]
    sums = numpy_helper.to_array(weight).sum(axis=(1, 2, 3))
    change(model, "maker_b", lambda bias: bias + steps * STEP)
    change(model, "reader_b", lambda bias: bias - steps * STEP * sums)


WRONG: dict[str, Callable[[onnx.ModelProto], None]] = {
    "the maker's bias forgotten": lambda model: back(model, "maker"),
    "the reader's bias forgotten": lambda model: back(model, "reader"),
    "both forgotten": lambda model: back(model, "maker", "reader"),
    "both a step too far": lambda model: consistently(model, 1),
    "one channel of the maker": lambda model: change(
        model, "maker_b", lambda bias: bias + np.eye(C)[0] * STEP
    ),
    "one channel of the reader": lambda model: change(
        model, "reader_b", lambda bias: bias + np.eye(C)[0] * STEP
    ),
}


@pytest.mark.parametrize("zero", [0, 100], ids=["ReLU", "skewed"])
@pytest.mark.parametrize("fault", WRONG)
def test_a_bias_that_took_up_another_is_refused(fault: str, zero: int) -> None:
    model = foreign(zero)
    right = repair(model, target="trt")
    wrong = onnx.ModelProto.FromString(right.model.SerializeToString())
    WRONG[fault](wrong)
    with pytest.raises(
        ExportError, match=r"so biases took up another; nothing|is another network; nothing"
    ):
        proof_of(model, dataclasses.replace(right, model=wrong))


def test_the_words_say_what_moved_and_what_was_due() -> None:
    model = foreign(100)
    right = repair(model, target="trt")
    wrong = onnx.ModelProto.FromString(right.model.SerializeToString())
    consistently(wrong, 2)
    with pytest.raises(ExportError) as caught:
        proof_of(model, dataclasses.replace(right, model=wrong))
    assert str(caught.value) == (
        "tensor maker: its mean moved by -1.04 and its zero-point stands for -1.12, so biases took "
        "up another; nothing is written. Report this file, or accept the distance of the outputs "
        "with --tolerance."
    )
