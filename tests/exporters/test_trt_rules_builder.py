"""Where the real TensorRT-RTX builder has an opinion, the rules share it, or say why not."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import trt_rules_graphs as graphs
import trt_rules_networks as networks
from onnx import TensorProto
from trt_rules_graphs import FLOAT16, FP8, INT4, INT8

from fdda_deploy.exporters.rules.versions import GONE_FLAGS
from fdda_deploy.exporters.trt_rules import check
from fdda_deploy.quant.element_types import TENSORRT_TYPES

pytest.importorskip("tensorrt_rtx_libs", reason="the TensorRT-RTX wheels are not installed")
trt = pytest.importorskip("tensorrt_rtx_bindings", reason="the RTX wheels are not installed")


class Log(trt.ILogger):  # type: ignore[misc]  # the bindings ship no types
    """Collects messages; TensorRT keeps the first logger of a process for good."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity == trt.ILogger.WARNING:
            self.warnings.append(message)


LOG = Log()


def builds(model: onnx.ModelProto, *, capability: str = "", profile: bool = True) -> bool:
    """Returns whether the real parser and builder make a plan, on the CPU."""
    builder = trt.Builder(LOG)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, LOG)
    if not parser.parse(model.SerializeToString()):
        return False
    config = builder.create_builder_config()
    if capability:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    if profile:
        shapes = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            sizes = [tuple(n if d < 0 else d for d in tensor.shape) for n in (1, 2, 4)]
            if -1 in tuple(tensor.shape):
                shapes.set_shape(tensor.name, *sizes)
        config.add_optimization_profile(shapes)
    return builder.build_serialized_network(network, config) is not None


def severities(model: onnx.ModelProto, rule: str, **options: Any) -> set[str]:
    return {finding.severity for finding in check(model, **options) if finding.rule == rule}


REFUSED = {
    "T003 zero-point three": ("T003", graphs.pair(zero_point=3)),
    "T003 behind Identity": ("T003", graphs.pair(zero_point=1, through="Identity")),
    "T003 computed": ("T003", graphs.pair(computed="zero-point")),
    "T004 INT16": ("T004", graphs.pair(zero_type=TensorProto.INT16)),
    "T004 UINT4": ("T004", graphs.matmul(weight_type=TensorProto.UINT4)),
    "T004 E5M2": ("T004", graphs.matmul(weight_type=TensorProto.FLOAT8E5M2, block=None, axis=1)),
    "T005 zero": ("T005", graphs.pair(scale=0.0)),
    "T005 negative": ("T005", graphs.pair(scale=-1.0)),
    "T005 NaN": ("T005", graphs.pair(scale=float("nan"))),
    "T005 dead channel": ("T005", graphs.conv(weight_scale=[0.01] * 31 + [0.0])),
    "T006 volume": ("T006", graphs.pair(zero_points=[4])),
    "T008 count": ("T008", graphs.conv(weight_scale=[0.01] * 31)),
    "T008 default axis": ("T008", graphs.conv(axis=None)),
    "T008 rank": ("T008", graphs.matmul(weight_type=INT8, block=None, axis=1, scale=[1, 64])),
    "T008 axis outside": ("T008", graphs.conv(axis=5)),
    "T010 Identity": ("T010", graphs.moved_weight(by="Identity")),
    "T010 Reshape": ("T010", graphs.moved_weight(by="Reshape")),
    "T011 cut block": ("T011", graphs.matmul(block=48, scale=[3, 64])),
    "T011 two axes": ("T011", graphs.matmul(scale=[2, 32])),
    "T011 first of three axes": ("T011", graphs.matmul(dims=[2, 128, 64], axis=0, block=2)),
    "T012 odd count": ("T012", graphs.matmul(k=127, n=1, block=None, axis=None)),
    "T013 INT4 times INT8": ("T013", graphs.conv(weight_type=INT4)),
    "T015 INT32 bias": ("T015", graphs.bias(integer=True)),
    "T016 QLinearConv": ("T016", graphs.foreign("QLinearConv")),
    "T016 ConvInteger": ("T016", graphs.foreign("ConvInteger")),
    "T016 DynamicQuantizeLinear": ("T016", graphs.foreign("DynamicQuantizeLinear")),
    "T016 FusedConv": ("T016", graphs.foreign("FusedConv", "com.microsoft")),
    "T016 type of an input": ("T016", graphs.typed(TensorProto.INT16)),
    "T016 unknown": ("T016", graphs.foreign("Swirl", "my.own")),
    "T016 a plugin that is not there": ("T016", graphs.foreign("Swirl_TRT")),
    "T017 operands": ("T017", graphs.mixed_types(mixed=True)),
    "T017 weight scales": ("T017", graphs.matmul(scale_type=FLOAT16)),
    "T018 DQ of a scalar": ("T018", graphs.scalar(op="DequantizeLinear")),
    "T030 INT8 times FP8": ("T030", networks.two_grids(INT8, FP8, INT8)),
}


@pytest.mark.parametrize(("rule", "model"), REFUSED.values(), ids=REFUSED.keys())
def test_what_the_builder_refuses_is_an_error(rule: str, model: onnx.ModelProto) -> None:
    assert not builds(model)
    assert "error" in severities(model, rule)


TAKEN = {
    "a quantized convolution": graphs.conv(),
    "no zero-points": graphs.pair(zero_point=None, output_dtype=INT8),
    "scales behind Identity": graphs.pair(through="Identity"),
    "weights from a Constant node": graphs.moved_weight(by="Constant"),
    "a float bias": graphs.bias(integer=False),
    "INT4 blocks": graphs.matmul(),
    "INT4 blocks, transposed": graphs.matmul(op="Gemm", trans_b=1, axis=1),
    "INT4 blocks, three axes": graphs.matmul(dims=[2, 128, 64], axis=1),
    "an INT4 convolution": graphs.conv(act=None, weight_type=INT4),
    "an FP8 convolution": graphs.conv(act=FP8, weight_type=FP8),
    "16-bit scales and inputs": graphs.matmul(scale_type=FLOAT16, x_type=FLOAT16),
    "one float type": graphs.mixed_types(mixed=False),
    "a residual block": networks.residual(),
    "a projection shortcut": networks.residual(shortcut=True),
    "a vector of one": graphs.scalar(op=""),
}


@pytest.mark.parametrize("model", TAKEN.values(), ids=TAKEN.keys())
def test_what_passes_without_error_is_built(model: onnx.ModelProto) -> None:
    assert [finding for finding in check(model) if finding.severity == "error"] == []
    assert builds(model)


@pytest.mark.parametrize("name", sorted(set(TensorProto.DataType.keys()) - {"UNDEFINED"}))
def test_the_element_types_are_those_that_the_parser_takes(name: str) -> None:
    network = trt.Builder(LOG).create_network(0)
    model = graphs.typed(TensorProto.DataType.Value(name))
    taken = trt.OnnxParser(network, LOG).parse(model.SerializeToString())
    assert taken == (name in TENSORRT_TYPES)


SOFTER_ON_RTX = {
    "T001 opset 26": ("T001", graphs.conv(opset=26)),
    "T007 activation per channel": ("T007", graphs.conv(act_scale=[0.02] * 16)),
    "T009 input-channel scales": ("T009", graphs.conv(axis=1, weight_scale=[0.01] * 16)),
    "T011 INT8 blocks": ("T011", graphs.matmul(weight_type=INT8)),
    "T013 INT4 convolution": ("T013", graphs.conv(act=None, weight_type=INT4)),
    "T016 known in both domains": ("T016", graphs.foreign("Gelu", "com.microsoft")),
}


@pytest.mark.parametrize(("rule", "model"), SOFTER_ON_RTX.values(), ids=SOFTER_ON_RTX.keys())
def test_what_rtx_builds_against_the_documentation_is_a_warning_there(
    rule: str, model: onnx.ModelProto
) -> None:
    assert builds(model)
    assert severities(model, rule, target="rtx") == {"warning"}


STRICTER = {
    "T002 FP8 below opset 19": ("T002", graphs.pair(zero_type=FP8, opset=13)),
    "T004 UINT8 becomes INT8": ("T004", graphs.pair(zero_type=TensorProto.UINT8)),
    "T005 infinite scale": ("T005", graphs.pair(scale=float("inf"))),
    "T005 subnormal scale": ("T005", graphs.pair(scale=1e-40)),
    "T016 ONNX's name in another domain": ("T016", graphs.foreign("Gelu", "my.own")),
    "T017 FLOAT scale on FLOAT16": ("T017", graphs.pair(x_type=FLOAT16)),
}


@pytest.mark.parametrize(("rule", "model"), STRICTER.values(), ids=STRICTER.keys())
def test_what_the_builder_lets_pass_silently_is_still_an_error(
    rule: str, model: onnx.ModelProto
) -> None:
    assert builds(model), "the builder refuses it now: move this case to REFUSED"
    assert severities(model, rule) == {"error"}


@pytest.mark.parametrize(
    ("capability", "number", "built"),
    [("SM75", 75, False), ("SM86", 86, False), ("SM89", 89, True), ("SM120", 120, True)],
)
def test_fp8_needs_the_capability_that_t027_names(
    capability: str, number: int, built: bool
) -> None:
    model = graphs.conv(act=FP8, weight_type=FP8)
    assert builds(model, capability=capability) == built
    assert ("error" in severities(model, "T027", compute_capabilities=(number,))) != built


def test_a_dynamic_batch_needs_the_profile_that_t032_asks_for() -> None:
    model = graphs.conv(shape=("batch", 16, 8, 8))
    assert not builds(model, profile=False)
    assert severities(model, "T032") == {"warning"}
    assert builds(model, profile=True)
    assert severities(model, "T032", profiles_given=True) == set()


def test_the_flags_that_t035_calls_gone_are_gone() -> None:
    flags = {*trt.BuilderFlag.__members__, *trt.NetworkDefinitionCreationFlag.__members__}
    assert flags.isdisjoint(GONE_FLAGS)
    assert not hasattr(trt, "IInt8EntropyCalibrator2")
    assert not hasattr(trt.ITensor, "set_dynamic_range")


def test_integers_beside_integers_make_a_smaller_plan_than_one_side_in_float() -> None:
    """What T019 warns of is visible: with the weight in float the plan carries float weights."""
    sizes = []
    for weight in (True, False):
        g = graphs.Graph((1, 128, 8, 8))
        dims = [128, 128, 3, 3]
        w = g.weight(dims) if weight else g.const(graphs.FLOAT, dims, 0.1)
        sizes.append(plan_bytes(g.model(g.add("Conv", g.qdq("x"), w, pads=[1] * 4))))
    assert sizes[0] < 0.6 * sizes[1]


def plan_bytes(model: onnx.ModelProto) -> int:
    builder = trt.Builder(LOG)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, LOG).parse(model.SerializeToString())
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    assert plan is not None
    return int(plan.nbytes)
