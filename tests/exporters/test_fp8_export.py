"""FP8 from placement to plan: which layers, which bytes, what the runtimes make of it."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
import torch
from export_grids import placed, run_onnx
from export_networks import exported
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its name everywhere

from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_build import BuildOptions, build_plan
from fdda_deploy.errors import ConfigError
from fdda_deploy.exporters.float_onnx import FloatGraph
from fdda_deploy.exporters.half import to_half
from fdda_deploy.exporters.placement_table import TABLE
from fdda_deploy.exporters.qdq import Grids, insert_qdq
from fdda_deploy.exporters.trt_rules import check
from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import GraphMap, QuantNetwork, convert
from fdda_deploy.quant import fp8

SHAPE = (3, 8, 8)


class Sixteens(nn.Module):
    """A stem from three channels, a residual block, a depthwise and a wide layer, an odd head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.wide = nn.Conv2d(16, 32, 1)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.mix = nn.Linear(16, 48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.conv(x) + x)
        x = self.up(F.relu(self.wide(F.relu(self.depthwise(x)))))
        return self.head(F.relu(self.mix(x.mean((2, 3)))))


@functools.cache
def made() -> tuple[FloatGraph, QuantNetwork, onnx.ModelProto]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        graph = exported(Sixteens().eval(), SHAPE)
    placement = placed(graph, "fp8", "rtx")
    names = GraphMap(graph.fx_from_tensor, graph.fx_from_node, graph.parameter_from_initializer)
    network = convert(graph.module, placement, names)
    calibrate(network, [pixels(32, 0)])
    grids = Grids(
        network.activation_qparams(), network.integer_weights(), network.float_parameters()
    )
    return graph, network, insert_qdq(graph.proto, placement, grids, {})


def pixels(count: int, seed: int) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_layers_of_whole_sixteens_are_placed_and_others_say_why():
    _, network, _ = made()
    assert [p.initializer.split(".")[0] for p in network.placement.weights] == [
        "conv",
        "wide",
        "up",
        "mix",
    ]
    left = dict(network.placement.left_float)
    assert set(left) == {"stem/Conv", "depthwise/Conv", "head/Gemm"}
    assert set(left.values()) == {TABLE["fp8-shapes"].reason}
    assert {p.storage for p in network.placement.activations} == {"fp8"}


def test_bytes_in_the_file_are_the_codes_of_the_weights():
    _, network, model = made()
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for point in network.placement.weights:
        tensor = held[f"{point.initializer}_quantized"]
        assert tensor.data_type == TensorProto.FLOAT8E4M3FN
        grid = network.weight_qparams(point)
        weight = network.weight_array(point)
        codes = fp8.encode(weight / grid.scale_for(weight.shape))
        assert tensor.raw_data == codes.tobytes()
        zero = held[f"{point.initializer}_zero_point"]
        assert (zero.data_type, list(zero.dims)) == (
            TensorProto.FLOAT8E4M3FN,
            list(grid.scale.shape),
        )
        assert not any(zero.raw_data)


def test_scales_are_the_largest_value_by_448():
    _, network, _ = made()
    for point in network.placement.weights:
        weight = np.abs(np.moveaxis(network.weight_array(point), point.axis, 0))
        amax = weight.reshape(len(weight), -1).max(axis=1)
        np.testing.assert_allclose(network.weight_qparams(point).scale, amax / 448, rtol=1e-6)


def test_onnx_runtime_computes_what_torch_computes():
    _, network, model = made()
    x = pixels(64, 1)
    with torch.no_grad():
        wanted = network(x).numpy()
    got = run_onnx(model, x)
    assert np.linalg.norm(got - wanted) <= 1e-2 * np.linalg.norm(wanted)
    assert (got.argmax(1) == wanted.argmax(1)).mean() >= 0.98


def test_logits_stay_near_the_float_ones():
    graph, network, _ = made()
    x = pixels(64, 1)
    with torch.no_grad():
        wanted, got = graph.module(x), network(x)
    assert float((got - wanted).norm()) <= 0.1 * float(wanted.norm())


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_no_rule_is_broken_and_the_builder_takes_it(half):
    pytest.importorskip("tensorrt_rtx_libs", reason="the TensorRT-RTX wheels are not installed")
    _, _, model = made()
    if half:
        model = to_half(model).proto
    errors = [f.message for f in check(model, target="rtx") if f.severity == "error"]
    assert errors == []
    assert not [f for f in check(model, target="rtx") if f.rule == "T027"]
    built = build_plan(model.SerializeToString(), BuildOptions(), load_api("tensorrt_rtx"))
    assert built.plan


def test_a_gpu_before_8_9_is_an_error():
    _, _, model = made()
    found = [f for f in check(model, compute_capabilities=(86,)) if f.rule == "T027"]
    assert [f.severity for f in found] == ["error"]


def test_a_cpu_is_refused_with_a_way_out():
    graph, _, _ = made()
    with pytest.raises(ConfigError, match=r"no CPU multiplies FP8\. Take --target rtx"):
        placed(graph, "fp8", "ort-cpu")


def test_fp16_places_nothing_and_says_so():
    graph, _, _ = made()
    placement = placed(graph, "fp16", "rtx")
    assert (placement.weights, placement.activations) == ((), ())
    assert {reason for _, reason in placement.left_float} == {TABLE["float-only"].reason}
    assert len(placement.left_float) == 7
