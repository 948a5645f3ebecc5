"""One broken graph and its repaired twin for every way to break a TensorRT rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import trt_rules_graphs as graphs
import trt_rules_networks as nets
from onnx import TensorProto
from trt_rules_graphs import FLOAT, FLOAT16, FP8, INT4, INT8


@dataclass(frozen=True)
class Case:
    """One way to break a rule, the words of the finding, and the repaired twin."""

    id: str
    broken: onnx.ModelProto
    repaired: onnx.ModelProto
    value: str
    severity: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    repaired_options: dict[str, Any] | None = None

    @property
    def rule(self) -> str:
        return self.id[:4]


TRT = {"target": "trt"}
RTX = {"target": "rtx"}
SOUND = graphs.conv()
PAIR = graphs.pair()
BLOCKS = graphs.matmul()
UINT4 = TensorProto.UINT4

CASES = (
    Case("T000 a body of its own", nets.weighted_if(), SOUND, "If has a body of its own"),
    Case("T001 opset 8", graphs.conv(opset=8), SOUND, "opset 8", "error"),
    Case("T001 opset 26 on TensorRT", graphs.conv(opset=26), SOUND, "opset 26", "error", TRT),
    Case("T001 opset 26 on RTX", graphs.conv(opset=26), SOUND, "opset 26", "warning", RTX),
    Case("T002 per channel", graphs.conv(opset=12), graphs.conv(opset=13), "needs opset 13"),
    Case("T002 fp16 scale", graphs.pair(scale_type=FLOAT16, x_type=FLOAT16, opset=18),
         graphs.pair(scale_type=FLOAT16, x_type=FLOAT16, opset=19), "FLOAT16 scale needs opset 19"),
    Case("T002 FP8", graphs.pair(zero_type=FP8, opset=18), graphs.pair(zero_type=FP8, opset=19),
         "FLOAT8E4M3FN needs opset 19, the model has 18"),
    Case("T003 three", graphs.pair(zero_point=3), PAIR, "zero-point 3"),
    Case("T003 computed", graphs.pair(computed="zero-point"), PAIR, "computed while"),
    Case("T003 behind Identity", graphs.pair(zero_point=3, through="Identity"),
         graphs.pair(through="Identity"), "zero-point 3"),
    Case("T004 UINT8", graphs.pair(zero_type=TensorProto.UINT8), PAIR, "quantized as UINT8"),
    Case("T004 INT16", graphs.pair(zero_type=TensorProto.INT16), PAIR, "quantized as INT16"),
    Case("T004 E5M2", graphs.pair(zero_type=TensorProto.FLOAT8E5M2), graphs.pair(zero_type=FP8),
         "quantized as FLOAT8E5M2"),
    Case("T004 nothing said", graphs.pair(zero_point=None),
         graphs.pair(zero_point=None, output_dtype=INT8), "no zero-point, which means UINT8"),
    Case("T004 UINT4 weights", graphs.matmul(weight_type=UINT4), BLOCKS, "quantized as UINT4"),
    Case("T005 zero", graphs.pair(scale=0.0), PAIR, "scale[0] = 0, 1 of 1 unusable"),
    Case("T005 negative", graphs.pair(scale=-1.0), PAIR, "scale[0] = -1"),
    Case("T005 NaN", graphs.pair(scale=np.nan), PAIR, "scale[0] = nan"),
    Case("T005 infinite", graphs.pair(scale=np.inf), PAIR, "scale[0] = inf"),
    Case("T005 subnormal", graphs.pair(scale=1e-40), PAIR, "scale[0] = 9.99995e-41"),
    Case("T005 subnormal in fp16", graphs.pair(scale=1e-6, scale_type=FLOAT16, x_type=FLOAT16),
         graphs.pair(scale=1e-6), "unusable"),
    Case("T005 one dead channel", graphs.conv(weight_scale=[0.01] * 31 + [0.0]), SOUND,
         "scale[31] = 0, 1 of 32 unusable"),
    Case("T005 computed", graphs.pair(computed="scale"), graphs.pair(through="Identity"),
         "computed while the network runs"),
    Case("T005 integers", graphs.pair(scale=1, scale_type=TensorProto.INT32), PAIR, "type INT32"),
    Case("T006 volume", graphs.pair(zero_points=[4]), PAIR, "4 zero-points, 1 scales"),
    Case("T006 type", graphs.pair(zero_type=TensorProto.UINT8, output_dtype=INT8), PAIR,
         "zero-point UINT8, tensor INT8"),
    Case("T007 per channel on TensorRT", graphs.conv(act_scale=[0.02] * 16), SOUND,
         "16 scales on an activation", "error", TRT),
    Case("T007 per channel on RTX", graphs.conv(act_scale=[0.02] * 16), SOUND,
         "16 scales on an activation", "warning", RTX),
    Case("T008 count", graphs.conv(weight_scale=[0.01] * 31), SOUND, "31 scales, axis 0 has 32"),
    Case("T008 default axis is wrong", graphs.conv(axis=None), SOUND, "32 scales, axis 1 has 16"),
    Case("T008 default axis happens to fit", graphs.conv(axis=None, cout=16), SOUND,
         "no axis, so the default 1", "warning"),
    Case("T008 outside", graphs.conv(axis=4), SOUND, "axis 4 of a tensor with 4 axes"),
    Case("T008 rank", graphs.matmul(weight_type=INT8, block=None, axis=1, scale=[1, 64]),
         graphs.matmul(weight_type=INT8, block=None, axis=1), "scale of shape 1x64"),
    Case("T009 Conv", graphs.conv(axis=1, weight_scale=[0.01] * 16), SOUND,
         "along axis 1 of the weight, output channels on 0", "error", TRT),
    Case("T009 Conv on RTX", graphs.conv(axis=1, weight_scale=[0.01] * 16), SOUND,
         "along axis 1", "warning", RTX),
    Case("T009 MatMul", graphs.matmul(weight_type=INT8, block=None, axis=0),
         graphs.matmul(weight_type=INT8, block=None, axis=-1), "output channels on 1"),
    Case("T009 Gemm", graphs.matmul(op="Gemm", trans_b=1, weight_type=INT8, block=None, axis=1),
         graphs.matmul(op="Gemm", trans_b=1, weight_type=INT8, block=None, axis=0),
         "output channels on 0"),
    Case("T010 Identity", graphs.moved_weight(by="Identity"), graphs.moved_weight(by="Constant"),
         "a quantized constant behind another operator"),
    Case("T010 Reshape", graphs.moved_weight(by="Reshape"), graphs.moved_weight(),
         "behind another"),
    Case("T010 activation", graphs.conv(act_scale=[0.02] * 16), SOUND, "not constant", "error",
         TRT),
    Case("T011 INT8 on TensorRT", graphs.matmul(weight_type=INT8), BLOCKS, "blocks of INT8",
         "error",
         TRT),
    Case("T011 INT8 on RTX", graphs.matmul(weight_type=INT8), BLOCKS, "blocks of INT8", "warning"),
    Case("T011 cut block", graphs.matmul(block=48, scale=[3, 64]), BLOCKS,
         "blocks of 48 on an axis of 128"),
    Case("T011 two axes", graphs.matmul(scale=[2, 32]), BLOCKS, "scale of shape 2x32, want 2x64"),
    Case("T011 first of three axes", graphs.matmul(dims=[2, 128, 64], axis=0, block=2),
         graphs.matmul(dims=[2, 128, 64], axis=1), "blocks along axis 0 of 3"),
    Case("T012 odd", graphs.matmul(k=127, n=1, block=None, axis=None), BLOCKS,
         "127 elements of INT4"),
    Case("T013 Conv", graphs.conv(weight_type=INT4, act=None), graphs.conv(act=None),
         "INT4 convolution weights", "warning", RTX),
    Case("T013 Conv on TensorRT", graphs.conv(weight_type=INT4, act=None), graphs.conv(act=None),
         "INT4 values read by Conv", "error", TRT),
    Case("T013 Conv with INT8 input", graphs.conv(weight_type=INT4), SOUND,
         "INT4 weights beside quantized activations in a convolution", "error"),
    Case("T013 MatMul with INT8 input", graphs.matmul(act=True), BLOCKS, "beside quantized",
         "warning"),
    Case("T013 activation", graphs.pair(zero_type=INT4), PAIR, "a 4-bit activation", "error"),
    Case("T014 blocks of 32", graphs.matmul(block=32), BLOCKS, "blocks of 32 along axis 0"),
    Case("T014 blocks along N", graphs.matmul(axis=1), BLOCKS, "blocks of 64 along axis 1"),
    Case("T014 no blocks", graphs.matmul(block=None, axis=1),
         graphs.matmul(op="Gemm", trans_b=1, axis=1, block=128), "no blocks"),
    Case("T015 INT32 bias", graphs.bias(integer=True), graphs.bias(integer=False), "INT32 behind"),
    *(Case(f"T016 {op}", graphs.foreign(op), PAIR, op, "error")
      for op in ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
                 "DynamicQuantizeLinear")),
    Case("T016 ORT's own", graphs.foreign("FusedConv", "com.microsoft"), PAIR, "FusedConv"),
    Case("T016 known in both domains", graphs.foreign("Gelu", "com.microsoft"),
         graphs.foreign("Gelu"), "com.microsoft.Gelu", "warning"),
    Case("T016 ONNX's name in another domain", graphs.foreign("Gelu", "my.own"),
         graphs.foreign("Gelu"), "unknown operator my.own.Gelu", "error"),
    Case("T016 type of an input", graphs.typed(TensorProto.INT16), graphs.typed(FLOAT),
         "input of type INT16", "error"),
    Case("T016 type of an output", graphs.typed(TensorProto.COMPLEX64), graphs.typed(FLOAT16),
         "output of type COMPLEX64", "error"),
    Case("T016 unknown", graphs.foreign("Swirl", "my.own"), PAIR, "unknown operator my.own.Swirl",
         "error"),
    Case("T016 unknown in ONNX's domain", graphs.foreign("Swirl"), PAIR, "unknown operator Swirl",
         "error"),
    Case("T016 plugin on TensorRT", graphs.foreign("Swirl_TRT"), PAIR, "Swirl_TRT", "warning", TRT),
    Case("T017 scale of Q", graphs.pair(x_type=FLOAT16), PAIR, "FLOAT scale on a FLOAT16 tensor"),
    Case("T017 operands", graphs.mixed_types(mixed=True), graphs.mixed_types(mixed=False),
         "operands of FLOAT and FLOAT16"),
    Case("T017 scale of weights", graphs.matmul(scale_type=FLOAT16),
         graphs.matmul(scale_type=FLOAT16, x_type=FLOAT16), "operands of FLOAT and FLOAT16"),
    Case("T018 Q", graphs.scalar(op="QuantizeLinear"), graphs.scalar(op=""), "a scalar"),
    Case("T018 DQ", graphs.scalar(op="DequantizeLinear"), graphs.scalar(op=""), "a scalar"),
    Case("T019 weight in float", nets.float_weight(act=True, weight=False), SOUND,
         "input quantized, weight in float", "warning"),
    Case("T019 input in float", nets.float_weight(act=False, weight=True), SOUND,
         "weight quantized, input in float", "warning", TRT),
    Case("T019 weight-only on RTX", nets.float_weight(act=False, weight=True),
         nets.float_weight(act=False, weight=True, dtype=INT4), "weight quantized", "note", RTX),
    Case("T020 skip in float", nets.residual(skip=False), nets.residual(),
         "skip input in float"),
    Case("T020 pair on the branch", nets.residual(branch=True), nets.residual(shortcut=True),
         "and the addition"),
    Case("T021 graph output", nets.tail("Relu", pair_at=1), nets.tail("Relu", pair_at=0),
         "quantized graph output"),
    Case("T021 read by Sigmoid", nets.tail("Sigmoid", pair_at=0), nets.tail("Relu", pair_at=0),
         "read by Sigmoid only"),
    Case("T022 two scales", nets.concat(0.02, 0.03), nets.concat(0.02, 0.02), "scales differ"),
    Case("T023 two pairs", nets.two_readers(0.02, 0.03), nets.two_readers(0.02, 0.02),
         "another scale than"),
    Case("T023 within a pair", nets.unequal_pair(0.02, 0.03), nets.unequal_pair(0.02, 0.02),
         "another scale than"),
    Case("T024 pool", nets.pool(both=False), nets.pool(both=True), "AveragePool of INT8"),
    Case("T025 few channels", graphs.conv(cin=8, cout=8), SOUND, "8 input and 8 output channels"),
    Case("T025 not the image layer", graphs.conv(cin=5), graphs.conv(cin=3), "5 input and 32"),
    Case("T025 depthwise 1x1", graphs.conv(cin=32, group=32, kernel=1),
         graphs.conv(cin=32, group=32, kernel=3), "depthwise kernel [1, 1]", "warning", TRT),
    Case("T025 depthwise on RTX", graphs.conv(cin=32, group=32),
         graphs.conv(cin=32, group=32, act=None), "1 channels per group", "warning", RTX),
    Case("T026 narrow", graphs.matmul(weight_type=INT8, block=None, axis=1, act=True, n=10),
         graphs.matmul(weight_type=INT8, block=None, axis=1, act=True), "K = 128, N = 10"),
    Case("T026 one row", graphs.matmul(rows=1), graphs.matmul(rows="batch"), "one row"),
    Case("T027 Ampere", graphs.conv(act=FP8, weight_type=FP8), graphs.conv(act=FP8,
         weight_type=FP8),
         "FP8 on compute capability 8.6", "error", {"compute_capabilities": (86, 89)},
         {"compute_capabilities": (89, 120)}),
    Case("T027 Ampere on TensorRT", graphs.conv(act=FP8, weight_type=FP8), SOUND,
         "capability 7.5", "warning", {"target": "trt", "compute_capabilities": (75,)}),
    Case("T027 channels", graphs.conv(act=FP8, weight_type=FP8, cout=24),
         graphs.conv(act=FP8, weight_type=FP8), "24 channels in FP8", "warning"),
    Case("T028 Sigmoid", nets.between("Sigmoid"), nets.between("Relu"),
         "Sigmoid stands between"),
    Case("T029 one layer", nets.two_layers(FLOAT16, FLOAT), nets.two_layers(FLOAT16, FLOAT16),
         "FLOAT among 16-bit layers"),
    Case("T030 two layers", nets.two_grids(INT8, INT8, FP8), nets.two_grids(FP8, FP8, FP8),
         "INT8 here, FP8 at", "warning"),
    Case("T030 one product", nets.two_grids(INT8, FP8, INT8), nets.two_grids(INT8, INT8, INT8),
         "INT8 times FP8", "error"),
    Case("T031 Softmax", nets.attention(softmax=True), nets.attention(), "Softmax reads INT8"),
    Case("T031 product", nets.attention(product=True), nets.attention(),
         "two activations in INT8"),
    Case("T032 batch", graphs.conv(shape=("batch", 16, 8, 8)), SOUND, "shape ?x16x8x8"),
    Case("T032 profile", graphs.conv(shape=("batch", 16, 8, 8)),
         graphs.conv(shape=("batch", 16, 8, 8)), "shape", "", {}, {"profiles_given": True}),
    Case("T033 IR 14", graphs.conv(ir=14), SOUND, "IR 14, the parser was built for 13", "note"),
    Case("T034 one layer", nets.two_layers(FLOAT, FLOAT), SOUND, "2 layers run in float", "note"),
    Case("T035 FP16", SOUND, SOUND, "trt11 has no such flag", "note", {"target": "trt",
         "flags": ("fp16",)},
         {"target": "trt10.16", "flags": ("fp16",)}),
)  # fmt: skip
