"""Grids on disk: what quantize writes is what export and evaluate read, to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fdda_deploy.exporters.float_onnx import FloatGraph, export_float
from fdda_deploy.exporters.placement import place
from fdda_deploy.pipeline.network import trace
from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import GraphMap, QuantNetwork, convert
from fdda_deploy.pipeline.quantization.fold import fold_batch_norm
from fdda_deploy.pipeline.quantization.layers import correct_biases
from fdda_deploy.pipeline.stages.grids import apply_grids, load_grids, save_grids
from fdda_deploy.quant.qparams import QParams
from fdda_deploy.quant.scheme import scheme_from_name

SHAPE = (3, 8, 8)


class Mixed(nn.Module):
    """A convolution, a transposed one, a linear layer over tokens (stored transposed) and one more.

    128 channels, so that weight-only schemes take blocks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 128, 2)
        self.tokens, self.head = nn.Linear(128, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.up(torch.relu(self.norm(self.conv(x)))))
        return self.head(torch.relu(self.tokens(x.flatten(2).transpose(1, 2))).mean(1))


@pytest.fixture(scope="module")
def graph() -> FloatGraph:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return export_float(fold_batch_norm(trace(Mixed().eval(), SHAPE)), SHAPE)


def network_of(graph: FloatGraph, scheme: str, target: str) -> QuantNetwork:
    placement = place(
        graph.proto,
        scheme_from_name(scheme),
        target,
        torch_tensors=graph.fx_from_tensor,
        parameters=graph.parameter_from_initializer,
    )
    names = GraphMap(graph.fx_from_tensor, graph.fx_from_node, graph.parameter_from_initializer)
    return convert(graph.module, placement, names)


def plain(qparams: QParams) -> list[object]:
    return [
        qparams.scale.tolist(),
        qparams.qmin,
        qparams.qmax,
        qparams.axis,
        qparams.zero_point,
        qparams.block_size,
    ]


@pytest.mark.parametrize("target", ["trt", "rtx", "ort-cpu"])
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a4", "w4a16", "w2a3"])
def test_a_network_comes_back_with_its_integers_and_logits(
    graph: FloatGraph, tmp_path: Path, scheme: str, target: str
) -> None:
    x = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    saved = network_of(graph, scheme, target)
    calibrate(saved, [x])
    correct_biases(saved, graph.module, x, torch.device("cpu"))
    save_grids(tmp_path, saved, model_digest="m", data_digest="", observer="mse")
    grids, record = load_grids(tmp_path)
    assert (record.scheme, record.target, record.model_digest) == (scheme, target, "m")
    loaded = network_of(graph, scheme, target)
    apply_grids(loaded, grids)
    first, second = saved.integer_weights(), loaded.integer_weights()
    assert first.keys() == second.keys()
    for name, (x_int, qparams) in first.items():
        assert np.array_equal(x_int, second[name][0])
        assert np.array_equal(x_int, grids.weights[name][0])
        assert plain(qparams) == plain(second[name][1])
    acts, others = saved.activation_qparams(), loaded.activation_qparams()
    assert {n: plain(q) for n, q in acts.items()} == {n: plain(q) for n, q in others.items()}
    with torch.no_grad():
        assert torch.equal(saved(x), loaded(x))


def test_amax_in_the_record_is_what_the_grid_reaches(graph: FloatGraph, tmp_path: Path) -> None:
    network = network_of(graph, "w4a4", "trt")
    calibrate(network, [torch.randn(8, *SHAPE)])
    save_grids(tmp_path, network, model_digest="m", data_digest="d", observer="minmax")
    _, record = load_grids(tmp_path)
    roles = {tensor.role for tensor in record.tensors.values()}
    assert roles == {"activation", "weight"}
    for tensor in record.tensors.values():
        reach = np.maximum(np.abs(tensor.qparams.low), np.abs(tensor.qparams.high)).reshape(-1)
        smaller = np.abs(tensor.qparams.high).reshape(-1)
        wanted = reach if tensor.role == "activation" else smaller
        assert np.allclose(np.reshape(tensor.amax, -1), wanted)
