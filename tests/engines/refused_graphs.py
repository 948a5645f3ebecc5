"""Small graphs that the real TensorRT-RTX builder refuses, by the rule that each breaks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from engine_graphs import GraphMaker, residual_w8a8, with_int4_weight
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.engines.build_options import BuildOptions

Edit = Callable[[onnx.ModelProto], None]
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def edited(edit: Edit) -> onnx.ModelProto:
    """The residual network after ``edit``."""
    model = residual_w8a8()
    edit(model)
    return model


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def put(name: str, value: np.ndarray | np.generic) -> Edit:
    """An edit that gives initializer ``name`` another value."""

    def edit(model: onnx.ModelProto) -> None:
        held = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        held.CopyFrom(numpy_helper.from_array(np.asarray(value), name))

    return edit


def computed(name: str, operator: str, reader: str, index: int) -> Edit:
    """An edit that has input ``index`` of ``reader`` computed from the initializer ``name``."""

    def edit(model: onnx.ModelProto) -> None:
        inputs = [name, name] if operator == "Add" else [name]
        model.graph.node.insert(0, helper.make_node(operator, inputs, ["made"], name="maker"))
        node_of(model, reader).input[index] = "made"

    return edit


def foreign(model: onnx.ModelProto) -> None:
    """Makes the addition an operator of ONNX Runtime's own."""
    add = node_of(model, "add")
    add.op_type, add.domain = "QLinearAdd", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def integer_convolution(operator: str) -> onnx.ModelProto:
    """Q, then an operator that computes on integers, then back to float."""
    make = GraphMaker()
    scale, zero = make.constant("s", np.float32(0.05)), make.constant("z", np.int8(0))
    x = make.op("QuantizeLinear", ["input", scale, zero], "q")
    weight = make.constant("w", make.rng.integers(-127, 128, (8, 3, 3, 3), dtype=np.int8))
    if operator == "ConvInteger":
        y = make.op("Cast", [make.op(operator, [x, weight], "core")], "y", to=FLOAT)
    else:
        parts = [x, scale, zero, weight]
        parts += [make.constant("ws", np.full(8, 0.01, np.float32))]
        parts += [make.constant("wz", np.zeros(8, np.int8)), scale, zero]
        y = make.op("DequantizeLinear", [make.op(operator, parts, "core"), scale, zero], "y")
    return make.model(y, ("N", 8, 14, 14), ("N", 3, 16, 16))


def mixed_types() -> onnx.ModelProto:
    """Half added to float."""
    make = GraphMaker()
    half = make.op("Cast", ["input"], "half", to=HALF)
    return make.model(make.op("Add", [half, "input"], "sum"), ("N", 3, 16, 16), ("N", 3, 16, 16))


def fp8_convolution() -> onnx.ModelProto:
    """A convolution with E4M3 weights and activations."""
    make, kind = GraphMaker(), TensorProto.FLOAT8E4M3FN
    scale = make.constant("s", np.float32(0.05))
    zeros = (("z", [], 1), ("wz", [16], 16), ("w", [16, 3, 3, 3], 432))
    for name, dims, count in zeros:
        byte = 0x38 if name == "w" else 0
        raw = bytes([byte] * count)
        make.initializers[name] = TensorProto(name=name, data_type=kind, dims=dims, raw_data=raw)
    x = make.op("QuantizeLinear", ["input", scale, "z"], "q")
    x = make.op("DequantizeLinear", [x, scale, "z"], "dq")
    weight_scale = make.constant("ws", np.full(16, 0.01, np.float32))
    weight = make.op("DequantizeLinear", ["w", weight_scale, "wz"], "wdq", axis=0)
    y = make.op("Conv", [x, weight], "conv", pads=[1] * 4)
    return make.model(y, ("N", 16, 16, 16), ("N", 3, 16, 16))


SMALL = BuildOptions(workspace_bytes=2**20)
REFUSED: dict[str, tuple[str, onnx.ModelProto, BuildOptions]] = {
    "zero-point of 3": ("T003", edited(put("input/zero_point", np.int8(3))), BuildOptions()),
    "zero-point computed": (
        "T003",
        edited(computed("input/zero_point", "Add", "input/quantize", 2)),
        BuildOptions(),
    ),
    "operator on integer weights": (
        "T010",
        edited(computed("conv1.weight", "Identity", "conv1.weight/dequantize", 0)),
        BuildOptions(),
    ),
    "scale of 0": ("T005", edited(put("input/scale", np.float32(0))), BuildOptions()),
    "scale not a number": ("T005", edited(put("input/scale", np.float32("nan"))), BuildOptions()),
    "zero-point too short": (
        "T006",
        edited(put("conv1.weight/zero_point", np.zeros(8, np.int8))),
        BuildOptions(),
    ),
    "int32 bias": ("T015", residual_w8a8(int32_bias=True), BuildOptions()),
    "int4 beside int8": ("T013", with_int4_weight(residual_w8a8(), "conv2.weight"), BuildOptions()),
    "fp8 on sm86": ("T027", fp8_convolution(), BuildOptions((86,))),
    "half plus float": ("T017", mixed_types(), BuildOptions()),
    "half scale": ("T017", edited(put("input/scale", np.float16(0.05))), BuildOptions()),
    "operator of another runtime": ("T016", edited(foreign), BuildOptions()),
    "QLinearConv": ("T016", integer_convolution("QLinearConv"), BuildOptions()),
    "ConvInteger": ("T016", integer_convolution("ConvInteger"), BuildOptions()),
    "too little workspace": ("", residual_w8a8(), SMALL),
    "float gemm on sm75": ("", residual_w8a8(), BuildOptions((75, 89))),
}
"""By what is wrong: rule (empty where the graph is not at fault), graph, and how it is built."""


def short_scale(model: onnx.ModelProto) -> None:
    """Gives a weight of 16 channels 8 scales."""
    put("conv1.weight/scale", np.full(8, 0.1, np.float32))(model)
    put("conv1.weight/zero_point", np.zeros(8, np.int8))(model)


REFUSED["scale of 8 channels for 16"] = ("T008", edited(short_scale), BuildOptions())
