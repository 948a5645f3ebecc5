"""Our own build's table, applied to its own float graph, gives its own activation pairs again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from road_networks import own

from fdda_deploy.calib_cache.store import load_any
from fdda_deploy.exporters.table_to_qdq import Applied, apply_table
from fdda_deploy.pipeline.run import build

PAIR = ("QuantizeLinear", "DequantizeLinear")


@pytest.fixture(scope="module")
def twins(
    input_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[onnx.ModelProto, Applied]:
    """The Q/DQ graph of a build, and the one that its table and its float graph give."""
    out = tmp_path_factory.mktemp("twins") / "out"
    images = str(input_folder / "calib.npz")
    config = own(input_folder, out, scheme="w8a8", calib_data=images, target="trt")
    build(config, until="export")
    form, record = load_any(out / "calibration.cache")
    assert form == "trt"
    applied = apply_table(record, onnx.load(out / "model.fp32.onnx"), "trt")
    return onnx.load(out / "model.qdq.onnx"), applied


def activation_pairs(model: onnx.ModelProto) -> list[bytes]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node.SerializeToString()
        for node in model.graph.node
        if node.op_type in PAIR and node.input[0] not in weights
    ]


def test_the_pairs_stand_at_the_same_tensors_under_the_same_names(
    twins: tuple[onnx.ModelProto, Applied],
) -> None:
    built, applied = twins
    assert activation_pairs(applied.model) == activation_pairs(built)
    assert len(activation_pairs(built)) >= 2


def test_their_scales_are_the_same_bit_for_bit(twins: tuple[onnx.ModelProto, Applied]) -> None:
    built, applied = twins
    ours, again = (
        {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        for model in (built, applied.model)
    )
    for tensor in applied.taken:
        for part in ("scale", "zero_point"):
            assert again[f"{tensor}_{part}"].tobytes() == ours[f"{tensor}_{part}"].tobytes()


def test_every_other_node_reads_and_makes_the_same_tensors(
    twins: tuple[onnx.ModelProto, Applied],
) -> None:
    built, applied = twins
    wiring = [
        [(node.op_type, list(node.input), list(node.output)) for node in model.graph.node]
        for model in (built, applied.model)
    ]
    assert wiring[0] == wiring[1]


def test_nothing_of_the_table_is_left_over(twins: tuple[onnx.ModelProto, Applied]) -> None:
    _, applied = twins
    assert applied.unknown == ()
    assert np.array_equal(sorted(applied.taken), sorted(set(applied.taken.values())))
