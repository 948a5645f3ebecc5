"""Graphs of mixed widths: torch and ONNX Runtime agree, TensorRT's rules hold, RTX builds them."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from parity_layers import relative_l2, run_onnx
from parity_networks import NETWORKS, Chain, build_chain, chain, float_graph, images
from torch import nn

from fdda_deploy.engines.trt_api import TrtApi, load_api
from fdda_deploy.engines.trt_build import BuildOptions, build_plan
from fdda_deploy.exporters.trt_rules import check

CASES = [
    (kind, scheme, target)
    for kind, (scheme, target) in itertools.product(
        NETWORKS, [("w4a4", "trt"), ("w4a8", "rtx"), ("w4a16", "rtx"), ("w4a4", "ort-cpu")]
    )
]
each_case = pytest.mark.parametrize(
    ("kind", "scheme", "target"), CASES, ids=[f"{k.__name__}-{s}-{t}" for k, s, t in CASES]
)
WAYS: tuple[int | None, ...] = (None, 8, 4)


@functools.cache
def mixed(kind: type[nn.Module], scheme: str, target: str, turn: int = 0) -> Chain:
    """The chain with float, 8 and 4 bits in turn over the layers."""
    points = chain(kind, scheme, target).network.placement.weights
    widths = {
        node: WAYS[(index + turn) % 3]
        for index, point in enumerate(points)
        for node in point.consumers
    }
    graph = float_graph(kind)
    return build_chain(graph, scheme, target, images(64, 1), "minmax", widths=widths)


@each_case
@pytest.mark.parametrize("turn", range(3))
def test_torch_and_onnx_runtime_agree_on_every_mixture(
    kind: type[nn.Module], scheme: str, target: str, turn: int
) -> None:
    made, x = mixed(kind, scheme, target, turn), images(128, 6)
    with torch.no_grad():
        ours, in_float = made.network(x).numpy(), made.graph.module(x).numpy()
    theirs = run_onnx(made.model, x)["logits"]
    assert relative_l2(ours, theirs) <= 1e-2
    assert np.mean(ours.argmax(1) == theirs.argmax(1)) >= 0.99
    assert relative_l2(theirs, in_float) > 1e-4, "nothing was quantized"
    kinds = {point.num_bits for point in made.network.placement.weights}
    assert kinds <= {4, 8}
    assert made.network.placement.left_float


@each_case
def test_wider_layers_are_nearer_to_the_float_network(
    kind: type[nn.Module], scheme: str, target: str
) -> None:
    x = images(128, 6)
    narrow, graph = chain(kind, scheme, target), float_graph(kind)
    nodes = [node for point in narrow.network.placement.weights for node in point.consumers]
    wide = build_chain(
        graph, scheme, target, images(64, 1), "minmax", widths=dict.fromkeys(nodes, 8)
    )
    in_float = build_chain(graph, scheme, target, images(64, 1), "minmax", dict.fromkeys(nodes))
    with torch.no_grad():
        reference = graph.module(x).numpy()
    lost = [relative_l2(run_onnx(made.model, x)["logits"], reference) for made in
            (narrow, wide, in_float)]  # fmt: skip
    assert lost[0] > lost[1] > 0
    assert lost[2] < 1e-5, "a transposed weight that is left in float reaches the file as it is"


@pytest.fixture(scope="module")
def api() -> TrtApi:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux x86-64")
    return load_api("tensorrt_rtx")


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("scheme", "target"), [("w4a4", "trt"), ("w4a8", "rtx"), ("w4a16", "rtx")])
def test_tensorrt_rtx_builds_mixtures_that_break_no_rule(
    api: TrtApi, kind: type[nn.Module], scheme: str, target: str
) -> None:
    model = mixed(kind, scheme, target).model
    findings = check(model, target=target, compute_capabilities=(86, 89), profiles_given=True)
    assert [finding.message for finding in findings if finding.severity == "error"] == []
    built = build_plan(model.SerializeToString(), BuildOptions(()), api)
    assert len(built.plan) > 10_000
    assert [line for line in built.log if line.startswith(("ERROR", "INTERNAL"))] == []
