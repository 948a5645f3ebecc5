"""A repair is proved before anything is written: near enough, or refused with the figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.errors import ConfigError, DataError, EngineError, ExportError
from fdda_deploy.pipeline.repair_proof import (
    AS_GIVEN,
    EXACT_TOLERANCE,
    GRID_TOLERANCE,
    RESTORED,
)
from fdda_deploy.pipeline.repairing import PROOF_BATCH, fix, read_feed, seeded_feed


def network(
    zero: int = 0, dtype: type = np.uint8, scale: float = 0.02, size: int | None = 8
) -> onnx.ModelProto:
    """Relu -> Q -> DQ -> Conv -> Relu, with a grid to repair where ``zero`` is not 0 of INT8."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (8, 4, 3, 3)).astype(np.int8)
    held = {
        "scale": np.float32(scale),
        "zero": dtype(zero),
        "w_int": weight,
        "w_scale": rng.uniform(0.001, 0.002, 8).astype(np.float32),
    }
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w_int", "w_scale"], ["w"], "weight", axis=0),
        helper.make_node("Conv", ["d", "w"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["y"], "last"),
    ]
    shape = ["batch", 4, size or "high", 8]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8, "h", "w"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_a_changed_grid_is_measured_and_the_findings_go() -> None:
    model = network()
    given = model.SerializeToString()
    done = fix(model, target="rtx")
    assert model.SerializeToString() == given
    assert done.proof is not None
    assert done.proof.reference == AS_GIVEN
    assert done.proof.tolerance == GRID_TOLERANCE
    assert 0 < done.proof.outputs["y"].relative_l2 < GRID_TOLERANCE
    assert done.proof.outputs["y"].max_abs_error > 0
    assert {finding.rule for finding in done.before} >= {"T004"}
    assert [finding for finding in done.after if finding.severity == "error"] == []


def test_exact_repairs_are_held_to_float_rounding() -> None:
    done = fix(network(128), target="rtx")
    assert done.proof is not None
    assert done.proof.tolerance == EXACT_TOLERANCE
    assert done.proof.outputs["y"].relative_l2 <= EXACT_TOLERANCE


def test_nothing_to_repair_needs_no_proof() -> None:
    model = network(0, np.int8)
    done = fix(model, target="rtx")
    assert done.applied == ()
    assert done.proof is None
    assert done.before == done.after


def test_too_far_is_refused_with_the_figures_and_the_way_on() -> None:
    with pytest.raises(ExportError) as caught:
        fix(network(scale=0.2), target="rtx", tolerance=0.001)
    assert str(caught.value).startswith("output y: the repairs move it by a relative L2 distance")
    assert "over the tolerance of 0.001; nothing is written" in str(caught.value)
    assert "--tolerance" in str(caught.value)


def test_a_file_that_nothing_loads_is_measured_from_where_it_loads() -> None:
    model = network()
    (node,) = [node for node in model.graph.node if node.name == "weight"]
    del node.attribute[:]  # the default axis 1 has 4 channels, and there are 8 scales
    done = fix(model, target="rtx")
    assert done.proof is not None
    assert done.proof.reference == RESTORED


def test_a_feed_that_is_given_is_what_both_graphs_see() -> None:
    feed = {"x": np.full((3, 4, 8, 8), 0.5, np.float32)}
    done = fix(network(), target="rtx", feed=feed)
    assert done.proof is not None
    assert done.proof.inputs == "the feed that was given"


def test_a_feed_of_another_name_is_refused() -> None:
    with pytest.raises(EngineError, match="feed has image: the graph wants x"):
        fix(network(), target="rtx", feed={"image": np.zeros((1, 4, 8, 8), np.float32)})


def test_an_unknown_operator_cannot_be_proved() -> None:
    model = network()
    node = model.graph.node[-1]
    node.op_type, node.domain = "Swirl", "my.own"
    model.opset_import.append(helper.make_opsetid("my.own", 1))
    with pytest.raises(EngineError, match="cannot load it"):
        fix(model, target="rtx")


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), float("inf")])
def test_a_tolerance_is_positive(tolerance: float) -> None:
    with pytest.raises(ConfigError, match="--tolerance"):
        fix(network(), target="rtx", tolerance=tolerance)


def test_drawn_inputs_are_the_same_for_a_seed_and_fill_the_batch() -> None:
    first, again, other = (seeded_feed(network(), seed)["x"] for seed in (1, 1, 2))
    assert first.shape == (PROOF_BATCH, 4, 8, 8)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_input_of_unknown_size_needs_a_feed() -> None:
    with pytest.raises(ExportError, match="input x: its size is unknown beyond the batch axis"):
        fix(network(size=None), target="rtx")


def test_an_input_too_large_to_draw_needs_a_feed() -> None:
    with pytest.raises(ExportError, match="is too large to draw"):
        seeded_feed(network(size=2**30), 0)


def test_a_feed_is_read_from_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(3, dtype=np.float32))
    np.testing.assert_array_equal(read_feed(tmp_path / "a.npz")["x"], [0, 1, 2])


def test_a_feed_that_would_run_code_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([object()], dtype=object))
    with pytest.raises(DataError, match=r"not an \.npz file of plain arrays"):
        read_feed(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no zip"])
def test_a_damaged_feed_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_feed(tmp_path / "a.npz")
    assert "\n" not in str(caught.value)
