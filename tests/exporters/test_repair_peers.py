"""What ONNX Runtime's quantizer and ModelOpt's style make of a network is repaired for RTX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_networks import SHAPE, Depthwise, Residual, graph_of
from peer_graphs import modelopt_style, ort_static, own_export, ranges
from repair_graphs import plan_of

from fdda_deploy.exporters.float_onnx import FloatGraph
from fdda_deploy.exporters.trt_rules import check
from fdda_deploy.pipeline.repairing import fix

BATCHES = [np.random.default_rng(seed).standard_normal((4, *SHAPE), np.float32) for seed in (0, 1)]
NETWORKS = {"residual": Residual, "depthwise": Depthwise}

pytest.importorskip("onnxruntime.quantization", reason="ONNX Runtime has no quantizer here")


def of_ort(operators: bool, unsigned: bool) -> Callable[[FloatGraph, Path], onnx.ModelProto]:
    return lambda graph, folder: ort_static(
        graph.proto, BATCHES, folder, operators=operators, unsigned=unsigned, per_channel=True
    )


def of_modelopt(graph: FloatGraph, folder: Path) -> onnx.ModelProto:
    return modelopt_style(graph.proto, ranges(graph.proto, BATCHES))


PEERS = {
    "ONNX Runtime, Q/DQ, UINT8": of_ort(operators=False, unsigned=True),
    "ONNX Runtime, Q/DQ, INT8": of_ort(operators=False, unsigned=False),
    "ONNX Runtime, QOperator": of_ort(operators=True, unsigned=True),
    "ModelOpt's style": of_modelopt,
}


@pytest.mark.filterwarnings("ignore")  # ONNX Runtime's quantizer warns of itself
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_is_repaired_into_a_graph_that_rtx_builds(
    peer: str, network: str, tmp_path: Path
) -> None:
    graph = graph_of(NETWORKS[network])
    model = PEERS[peer](graph, tmp_path)
    feed = {graph.proto.graph.input[0].name: BATCHES[1]}
    done = fix(model, target="rtx", feed=feed)
    assert [finding.message for finding in done.after if finding.severity == "error"] == []
    assert {f.rule for f in check(done.model, target="rtx")} & {"T020", "T021"} == set()
    own, theirs = (
        plan_of(own_export(graph, "rtx", ranges(graph.proto, BATCHES))),
        plan_of(done.model),
    )
    assert own is not None
    assert theirs is not None
    assert len(theirs) <= 1.05 * len(own)  # a plan of three layers is mostly kernels and names
