"""A right repair passes its proof however much rounding it moved; a wrong one is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from foreign_pairs import PairMaker
from onnx import numpy_helper

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.repair import qoperators
from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.repairing import Repaired, repair
from fdda_deploy.pipeline.repair_proof import FARTHER, GRID_TOLERANCE, Proof, proved
from fdda_deploy.pipeline.repairing import fix

C = 8
FEED = {"x": np.random.default_rng(3).standard_normal((4, C, 8, 8)).astype(np.float32)}


class Maker(PairMaker):
    """Q/DQ graph as ONNX Runtime's quantizer writes it, node by node."""

    def __init__(self) -> None:
        super().__init__(C)

    def integers(self, name: str, per_group: int) -> list[str]:
        shape = (C, per_group, 3, 3)
        return [
            self.constant(f"{name}_w", self.rng.integers(-127, 128, shape).astype(np.int8)),
            self.constant(f"{name}_w_scale", self.rng.uniform(1e-3, 2e-3, C).astype(np.float32)),
            self.constant(f"{name}_w_zero", np.zeros(C, np.int8)),
        ]

    def conv(self, x: str, name: str, group: int = 1) -> str:
        w = self.op("DequantizeLinear", self.integers(name, C // group), f"{name}_w_dq", axis=0)
        bias = self.constant(f"{name}_b", self.rng.integers(-9000, 9000, C).astype(np.int32))
        scale = self.constant(f"{name}_b_scale", np.full(C, 3e-5, np.float32))
        b = self.op("DequantizeLinear", [bias, scale], f"{name}_b_dq", axis=0)
        return self.op("Conv", [x, w, b], name, pads=[1] * 4, group=group)


def foreign(group: int = 1, scale: float = 0.02) -> onnx.ModelProto:
    """x -> conv -> (ReLU that the grid stands for) -> conv -> conv, UINT8 throughout."""
    make = Maker()
    first = make.conv(make.pair("x", 0.03, 120), "first")
    second = make.conv(make.pair(first, scale, 0), "second", group)
    return make.model(make.conv(make.pair(second, 0.02, 128), "third"))


def qoperator() -> onnx.ModelProto:
    """x -> QuantizeLinear -> QLinearConv -> DequantizeLinear."""
    make = Maker()
    grid, out = make.grid("x", 0.03, 120), make.grid("y", 0.02, 0)
    bias = make.constant("b", make.rng.integers(-9000, 9000, C).astype(np.int32))
    q = make.op("QuantizeLinear", ["x", *grid], "x_q")
    y = make.op(
        "QLinearConv", [q, *grid, *make.integers("first", C), *out, bias], "y_q", pads=[1] * 4
    )
    return make.model(make.op("DequantizeLinear", [y, *out], "y"))


def proof_of(model: onnx.ModelProto, repaired: Repaired) -> Proof:
    return proved(model, repaired, "rtx", FEED, "", None)


def test_a_right_repair_stands_for_the_very_same_float_network() -> None:
    model = foreign()
    proof = proof_of(model, repair(model, target="trt"))
    assert proof.against_float is not None
    assert proof.against_float.twins == {"third": 0.0}
    assert proof.against_float.grids == 3
    assert proof.against_float.worst_grid == pytest.approx(1, abs=0.1)


def test_two_grids_on_one_tensor_are_each_held_to_their_own() -> None:
    make = Maker()
    first = make.conv(make.pair("x", 0.03, 120), "first")
    readers = []
    for name, scale in (("fine", 0.01), ("coarse", 0.04)):
        grid = make.grid(name, scale, 0)
        q = make.op("QuantizeLinear", [first, *grid], f"{name}_q")
        readers.append(make.conv(make.op("DequantizeLinear", [q, *grid], f"{name}_dq"), name))
    model = make.model(make.op("Add", readers, "sum"))
    proof = proof_of(model, repair(model, target="trt"))
    assert proof.against_float is not None
    assert proof.against_float.grids == 3
    assert proof.against_float.twins == {"sum": 0.0}


def test_outputs_that_move_because_rounding_was_taken_away_pass() -> None:
    """The depthwise layer runs in float on RTX, and it was coarse."""
    proof = fix(foreign(group=C, scale=0.6), target="rtx", feed=FEED).proof
    assert proof is not None
    assert proof.outputs["third"].relative_l2 > GRID_TOLERANCE
    against = proof.against_float
    assert against is not None
    assert against.after["third"].relative_l2 < against.before["third"].relative_l2


def test_a_grid_that_costs_too_much_is_refused_with_the_distances_to_float() -> None:
    with pytest.raises(ExportError) as caught:
        fix(foreign(scale=0.6), target="trt", feed=FEED)
    words = str(caught.value)
    assert "output third: the repairs move it by a relative L2 distance of" in words
    assert f"off the float network that the file stands for, over {FARTHER} times" in words
    assert "nothing is written" in words


def test_what_a_tolerance_allows_is_written_all_the_same() -> None:
    proof = fix(foreign(scale=0.6), target="trt", feed=FEED, tolerance=0.9).proof
    assert proof is not None
    assert proof.against_float is None


def change(model: onnx.ModelProto, name: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name.startswith(name)]
    value = edit(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def of_channel(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda value: np.concatenate([value[:1] * np.float32(factor), value[1:]])


def node(model: onnx.ModelProto, kind: str, source: str) -> onnx.NodeProto:
    (found,) = [n for n in model.graph.node if n.op_type == kind and n.input[0] == source]
    return found


def own_operand(model: onnx.ModelProto, which: onnx.NodeProto, index: int, value: object) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), "its_own"))
    which.input[index] = "its_own"


def wrong_weight_axis(model: onnx.ModelProto) -> None:
    (attribute,) = node(model, "DequantizeLinear", "second_w").attribute
    attribute.i = 1


def forgotten_relu(model: onnx.ModelProto) -> None:
    node(model, "Relu", "first").op_type = "Identity"


def zero_point_of_one_side(model: onnx.ModelProto) -> None:
    own_operand(model, node(model, "QuantizeLinear", "first_relu"), 2, np.int8(1))


def scale_of_one_side(model: onnx.ModelProto) -> None:
    own_operand(model, node(model, "QuantizeLinear", "first_relu"), 1, np.float32(0.03))


WRONG: dict[str, Callable[[onnx.ModelProto], None]] = {
    "a weight's scale": lambda m: change(m, "second_w_scale", of_channel(1.01)),
    "a weight's zero-point": lambda m: change(m, "second_w_zero", lambda z: z + np.int8(1)),
    "a weight's axis": wrong_weight_axis,
    "a bias": lambda m: change(m, "second_b", of_channel(1.05)),
    "a bias left out": lambda m: change(m, "first_b", lambda b: 0 * b),
    "an activation's scale doubled": lambda m: change(m, "first_int8_scale", lambda s: 2 * s),
    "an activation's scale halved": lambda m: change(m, "first_int8_scale", lambda s: s / 2),
    "an activation's scale of one side": scale_of_one_side,
    "an activation's zero-point of one side": zero_point_of_one_side,
    "a ReLU forgotten": forgotten_relu,
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_repair_is_refused(fault: str) -> None:
    model = foreign()
    right = repair(model, target="trt")
    wrong = onnx.ModelProto.FromString(right.model.SerializeToString())
    WRONG[fault](wrong)
    with pytest.raises(ExportError, match=r"is another network; nothing|its new grid are"):
        proof_of(model, dataclasses.replace(right, model=wrong))


def test_operators_that_are_read_right_agree_with_their_pairs() -> None:
    proof = fix(qoperator(), target="trt", feed=FEED).proof
    assert proof is not None
    assert proof.against_float is not None
    assert proof.against_float.rewritten is not None


def test_operators_that_are_misread_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = qoperators._bias

    def doubled(graph: GraphEdit, *rest: object) -> list[str] | None:
        names = right(graph, *rest)  # type: ignore[arg-type]
        value = graph.constant(names[0]) if names else None
        assert value is not None
        return [graph.add_constant("doubled", np.asarray(2 * value))]

    monkeypatch.setattr(qoperators, "_bias", doubled)
    with pytest.raises(ExportError, match="so they were misread; nothing is written"):
        fix(qoperator(), target="trt", feed=FEED)
