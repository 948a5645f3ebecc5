"""A compact plan is proved: weights to half a step, grids never narrower; wrong ones refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
from foreign_pairs import PairMaker
from onnx import numpy_helper

from fdda_deploy.errors import ConfigError, ExportError
from fdda_deploy.exporters.repair.repairing import Repaired, repair
from fdda_deploy.exporters.repair.shared_scales import MOST_WITHOUT_A_KERNEL
from fdda_deploy.pipeline.repair_proof import AgainstFloat, Proof, proved
from fdda_deploy.pipeline.repairing import cut_off_tensors, fix

C = 16
FEED = {"x": np.random.default_rng(3).standard_normal((4, C, 8, 8)).astype(np.float32)}


class Maker(PairMaker):
    """Q/DQ graph of convolutions with INT8 weights per channel and UINT8 pairs."""

    def __init__(self) -> None:
        super().__init__(C)

    def conv(self, x: str, name: str, size: int = 1, rows: np.ndarray | None = None) -> str:
        scale = self.rng.uniform(1e-3, 3e-3, C) if rows is None else rows
        weight = [
            self.constant(f"{name}_w", self.rng.integers(-127, 128, (C, C, size, size), np.int8)),
            self.constant(f"{name}_w_scale", np.asarray(scale, np.float32)),
            self.constant(f"{name}_w_zero", np.zeros(C, np.int8)),
        ]
        w = self.op("DequantizeLinear", weight, f"{name}_w_dq", axis=0)
        bias = self.constant(f"{name}_b", self.rng.normal(0, 0.2, C).astype(np.float32))
        return self.op("Conv", [x, w, bias], name, pads=[size // 2] * 4)


@cache
def foreign() -> onnx.ModelProto:
    """A residual: first + third, with a free tensor, a sum and a padded one of one shape."""
    make = Maker()
    first = make.conv(make.pair("x", 0.03, 120), "first")
    second = make.conv(make.pair(first, 0.012, 118), "second")
    third = make.conv(make.pair(second, 0.006, 0), "third")
    total = make.op("Add", [f"{first}_dq", third], "total")
    return make.model(make.conv(make.pair(total, 0.015, 120), "last", 3))


@cache
def right() -> Repaired:
    return repair(foreign(), target="rtx", compact_plan=True)


def proof_of(repaired: Repaired, model: onnx.ModelProto | None = None) -> Proof:
    return proved(model or foreign(), repaired, "rtx", FEED, "", None)


def against(proof: Proof) -> AgainstFloat:
    assert proof.against_float is not None
    return proof.against_float


def test_a_right_one_is_the_same_network_with_its_weights_to_half_a_step() -> None:
    found = against(proof_of(right()))
    assert max(found.twins.values()) < 1e-5
    assert found.weights == 4
    assert found.worst_weight is not None
    assert 0.4 < found.worst_weight <= 0.501
    assert found.widest_grid is not None
    assert 1 < found.widest_grid <= MOST_WITHOUT_A_KERNEL
    assert found.worst_grid is not None
    assert found.worst_grid < 1.1


def test_the_repair_did_all_that_is_to_be_proved() -> None:
    assert {change.repair for change in right().applied} >= {"R12", "R13", "R15", "R16"}
    assert right().notes.scaled
    assert right().notes.coarsened
    assert right().notes.moved


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(held for held in model.graph.initializer if held.name == name)


def change(model: onnx.ModelProto, name: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    held = tensor(model, name)
    value = numpy_helper.to_array(held)
    held.CopyFrom(numpy_helper.from_array(edit(value.copy()).astype(value.dtype), name))


def operand(model: onnx.ModelProto, layer: str, index: int) -> str:
    """Returns the constant behind a layer's weight: its integers (0) or scale (1)."""
    (node,) = [n for n in model.graph.node if n.name == f"{layer}_node"]
    (dq,) = [n for n in model.graph.node if n.output[0] == node.input[1]]
    return str(dq.input[index])


def bias(model: onnx.ModelProto, layer: str) -> str:
    (node,) = [n for n in model.graph.node if n.name == f"{layer}_node"]
    return str(node.input[2])


def own_scale(model: onnx.ModelProto, source: str, factor: float) -> None:
    """Gives the pair of one tensor a scale of its own, ``factor`` times what it shares."""
    quantize = next(
        n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == source
    )
    scale = numpy_helper.to_array(tensor(model, quantize.input[1]))
    model.graph.initializer.append(
        numpy_helper.from_array(np.asarray(scale * np.float32(factor)), "its_own")
    )
    for node in model.graph.node:
        if node is quantize or (node.input and node.input[0] == quantize.output[0]):
            node.input[1] = "its_own"


def coarser_weight(model: onnx.ModelProto) -> None:
    """Half as many steps, rounded right: each number moves by at most half a step."""
    change(model, operand(model, "second", 0), lambda x: np.rint(x / 2))
    change(model, operand(model, "second", 1), lambda s: 2 * s)


def forgotten_row(model: onnx.ModelProto) -> None:
    old = numpy_helper.to_array(tensor(foreign(), "third_w"))
    row = int(numpy_helper.to_array(tensor(foreign(), "third_w_scale")).argmin())

    def put_back(x: np.ndarray) -> np.ndarray:
        x[row] = old[row]
        return x

    change(model, operand(model, "third", 0), put_back)


WRONG: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "a weight's scale": (
        lambda m: change(m, operand(m, "second", 1), lambda s: s * 1.01), "its weight moved by"
    ),
    "a row on its old scale": (forgotten_row, "its weight moved by"),
    "a weight coarser than it has to be": (coarser_weight, "its largest number is"),
    "a grid narrower than it was": (lambda m: own_scale(m, "total", 0.3), "its new grid are"),
    "a grid wider than sharing may make it": (
        lambda m: own_scale(m, "total", 5.0), "its new grid are"
    ),
    "a multiplied tensor on its old scale": (
        lambda m: own_scale(m, "second", 0.3), "its new grid are"
    ),
    "a maker's bias that was not multiplied": (
        lambda m: change(m, bias(m, "second"), lambda b: b * 0.5),
        "biases took up another|is another network",
    ),
    "a zero-point that the reader did not take back": (
        lambda m: change(m, bias(m, "third"), lambda b: b + 0.1), "is another network"
    ),
    "a zero-point that nobody moved": (
        lambda m: change(m, bias(m, "second"), lambda b: b + 0.2),
        "biases took up another|is another network",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_one_is_refused(fault: str) -> None:
    edit, words = WRONG[fault]
    wrong = onnx.ModelProto.FromString(right().model.SerializeToString())
    edit(wrong)
    with pytest.raises(ExportError, match=f"({words}).*; nothing is written"):
        proof_of(dataclasses.replace(right(), model=wrong))


def test_what_was_claimed_of_a_tensor_is_held_against_its_values() -> None:
    notes = dataclasses.replace(right().notes, scaled={})
    with pytest.raises(ExportError, match="nothing is written"):
        proof_of(dataclasses.replace(right(), notes=notes))


def uneven() -> onnx.ModelProto:
    """One channel a thousand times as large as those that matter: one scale is too coarse."""
    make = Maker()
    rows = np.full(C, 2e-5)
    rows[0] = 2e-2
    first = make.conv(make.pair("x", 0.03, 128), "first", rows=rows)
    make.held[-1].CopyFrom(numpy_helper.from_array(np.zeros(C, np.float32), "first_b"))
    model = make.model(make.op("Slice", [first, *slice_of(make)], "tail"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = C - 1
    return model


def slice_of(make: Maker) -> list[str]:
    return [
        make.constant(name, np.asarray([value], np.int64))
        for name, value in (("from", 1), ("to", C), ("axis", 1))
    ]


def test_asked_for_by_name_it_is_refused_where_it_cannot_be_proved() -> None:
    with pytest.raises(ExportError, match="nothing is written"):
        fix(uneven(), target="rtx", feed=FEED, compact_plan=True)


def test_left_open_the_graph_is_repaired_without_it_and_the_reason_is_told() -> None:
    done = fix(uneven(), target="rtx", feed=FEED, compact_plan=None)
    assert not done.compact_plan
    assert "nothing is written" in done.not_compact
    assert not {change.repair for change in done.applied} & {"R13", "R14", "R15", "R16"}


def test_left_open_it_is_for_rtx_alone() -> None:
    assert fix(foreign(), target="rtx", feed=FEED, compact_plan=None).compact_plan
    assert not fix(foreign(), target="trt", feed=FEED, compact_plan=None, tolerance=9).compact_plan


def test_for_another_target_it_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        fix(foreign(), target="trt11", compact_plan=True)
    assert str(caught.value) == (
        "--compact-plan: for TensorRT-RTX alone, got target trt11. Take --target rtx, or leave "
        "--compact-plan out."
    )


def hidden_relu() -> onnx.ModelProto:
    """A skip whose ReLU is what INT8 cuts off at its lowest value, as a repair leaves it."""
    make = Maker()
    first = make.conv(make.pair("x", 0.03, 128), "first")
    make.pair(first, 0.01, 0)
    main = make.conv(f"{first}_dq", "main")
    return repair(make.model(make.op("Add", [f"{first}_dq", main], "sum")), target="trt").model


def test_a_skip_that_hides_a_relu_is_found_and_keeps_its_pair() -> None:
    model = hidden_relu()
    assert not [node for node in model.graph.node if node.op_type == "Relu"]
    assert cut_off_tensors(model, "rtx", FEED) == {"first"}
    done = fix(model, target="rtx", feed=FEED, compact_plan=True)
    assert not [change for change in done.applied if change.repair == "R13"]
    assert done.proof is not None
    assert done.proof.outputs["sum"].relative_l2 < 0.05


def test_a_tensor_within_its_grid_hides_nothing() -> None:
    model = repair(foreign(), target="rtx").model
    assert "total" not in cut_off_tensors(model, "rtx", FEED)
