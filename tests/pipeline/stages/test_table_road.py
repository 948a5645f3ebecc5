"""Our own build's table, applied to its own float graph, gives its own activation pairs again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from road_networks import own

from fdda_deploy.calib_cache.store import load_any, load_record
from fdda_deploy.exporters.table_to_qdq import Applied, apply_table
from fdda_deploy.pipeline.run import build

PAIR = ("QuantizeLinear", "DequantizeLinear")


@pytest.fixture(scope="module")
def built(input_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a build."""
    out = tmp_path_factory.mktemp("twins") / "out"
    images = str(input_folder / "calib.npz")
    config = own(input_folder, out, scheme="w8a8", calib_data=images, target="trt")
    build(config, until="export")
    return out


@pytest.fixture(scope="module")
def twins(built: Path) -> tuple[onnx.ModelProto, Applied]:
    """The Q/DQ graph of a build, and the one that its table and its float graph give."""
    form, record = load_any(built / "calibration.cache")
    assert form == "trt"
    applied = apply_table(record, onnx.load(built / "model.fp32.onnx"), "trt")
    return onnx.load(built / "model.qdq.onnx"), applied


@pytest.fixture(scope="module")
def shifted(built: Path) -> set[str]:
    """Tensors with a zero-point in the build, which a table cannot hold: it has one scale each."""
    record = load_record(built / "calibration.json")
    return {name for name, tensor in record.tensors.items() if tensor.qparams.zero_point != 0}


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


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


def test_their_scales_are_the_same_bit_for_bit(
    twins: tuple[onnx.ModelProto, Applied], shifted: set[str]
) -> None:
    ours, again = constants(twins[0]), constants(twins[1].model)
    assert set(twins[1].taken) - shifted
    for tensor in twins[1].taken:
        assert again[f"{tensor}_zero_point"].tobytes() == ours[f"{tensor}_zero_point"].tobytes()
        if tensor not in shifted:
            assert again[f"{tensor}_scale"].tobytes() == ours[f"{tensor}_scale"].tobytes()


def test_of_a_tensor_with_a_zero_point_the_table_has_the_symmetric_scale(
    twins: tuple[onnx.ModelProto, Applied], shifted: set[str]
) -> None:
    ours, again = constants(twins[0]), constants(twins[1].model)
    assert shifted
    for tensor in shifted:  # behind a ReLU: 255 steps from 0 up, of which the table keeps 127
        ratio = float(again[f"{tensor}_scale"] / ours[f"{tensor}_scale"])
        assert ratio == pytest.approx(255 / 127)


def test_every_other_node_reads_and_makes_the_same_tensors(
    twins: tuple[onnx.ModelProto, Applied], shifted: set[str]
) -> None:
    """But for rectifiers that the zero-point made superfluous."""
    saturated = {
        node.input[0]: node.output[0]
        for node in twins[1].model.graph.node
        if node.op_type == "Relu" and node.output[0] in shifted
    }
    assert len(saturated) == len(shifted)
    ours, again = (
        [
            (node.op_type, list(node.input), [saturated.get(t, t) for t in node.output])
            for node in model.graph.node
            if not (node.op_type == "Relu" and node.input[0] in saturated)
        ]
        for model in (twins[0], twins[1].model)
    )
    assert ours == again


def test_nothing_of_the_table_is_left_over(twins: tuple[onnx.ModelProto, Applied]) -> None:
    _, applied = twins
    assert applied.unknown == ()
    assert np.array_equal(sorted(applied.taken), sorted(set(applied.taken.values())))
