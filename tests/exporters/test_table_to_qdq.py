"""A TensorRT 10 table and its float graph give the Q/DQ graph that TensorRT 11 takes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from table_graphs import foreign, images, ranges, run, table

from fdda_deploy.calib_cache.record import CalibrationRecord, TensorCalibration
from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_build import BuildOptions, build_plan
from fdda_deploy.errors import CalibrationError, ExportError
from fdda_deploy.exporters.foreign_float import prepared
from fdda_deploy.exporters.table_to_qdq import Applied, apply_table
from fdda_deploy.exporters.trt_rules import check
from fdda_deploy.quant.affine import fake_quant, qparams_from_amax
from fdda_deploy.quant.qparams import QParams

POINTS = {"image", "x2", "flat"}
"""What has to be quantized: the inputs of both convolutions and of the linear layer."""


@pytest.fixture(scope="module")
def amax() -> dict[str, float]:
    return ranges(foreign())


@pytest.fixture(scope="module")
def applied(amax: dict[str, float]) -> Applied:
    return apply_table(table(amax), foreign(), "trt")


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    return np.asarray(numpy_helper.to_array(tensors[name]))


def test_activations_take_the_scales_of_the_table_bit_for_bit(
    applied: Applied, amax: dict[str, float]
) -> None:
    assert applied.taken == {name: name for name in POINTS}
    for name in POINTS:
        scale = constant(applied.model, f"{name}_scale")
        assert scale.tobytes() == np.float32(amax[name] / 127).tobytes()


def test_weights_are_integers_with_amax_over_127_per_output_channel(applied: Applied) -> None:
    weight = constant(prepared(foreign()), "w0")
    x_int, scale = (constant(applied.model, f"w0_{part}") for part in ("quantized", "scale"))
    assert x_int.dtype == np.int8
    assert np.array_equal(scale, np.abs(weight).max(axis=(1, 2, 3)) / np.float32(127))
    assert np.abs(x_int).max(axis=(1, 2, 3)).tolist() == [127] * len(weight)


@pytest.mark.parametrize("target", ["trt", "rtx"])
def test_the_result_breaks_no_rule(amax: dict[str, float], target: str) -> None:
    model = apply_table(table(amax), foreign(), target).model
    assert not [f for f in check(model, target=target) if f.severity == "error"]


def test_the_real_builder_takes_it(amax: dict[str, float]) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux x86-64")
    model = apply_table(table(amax), foreign(), "rtx").model
    assert build_plan(model.SerializeToString(), BuildOptions(), load_api("tensorrt_rtx")).plan


def by_hand(applied: Applied, batch: np.ndarray) -> np.ndarray:
    """Runs the float graph node by node, rounding what a point names with our own arithmetic."""
    graph = prepared(foreign()).graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer} | {"image": batch}
    weights = {point.initializer: point.axis for point in applied.placement.weights}
    for name, axis in weights.items():
        others = tuple(a for a in range(values[name].ndim) if a != axis)
        grid = qparams_from_amax(np.abs(values[name]).max(axis=others), axis=axis)
        values[name] = fake_quant(values[name], grid)
    grids = {
        (node, index): QParams(constant(applied.model, f"{point.tensor}_scale"), -128, 127)
        for point in applied.placement.activations
        for node, index in point.consumers
    }
    for node in graph.node:
        feed = {}
        for index, name in enumerate(node.input):
            grid = grids.get((node.name, index))
            feed[name] = values[name] if grid is None else fake_quant(values[name], grid)
        (values[node.output[0]],) = ReferenceEvaluator(node).run(None, feed)
    return np.asarray(values["logits"])


def test_onnx_runtime_computes_what_rounding_by_hand_gives(applied: Applied) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        applied.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"image": images()})
    wanted = by_hand(applied, images())
    assert np.abs(logits - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_for_the_cpu_outputs_are_quantized_too(amax: dict[str, float]) -> None:
    found = apply_table(table(amax), foreign(), "ort-cpu")
    assert found.taken.keys() > POINTS


def test_entries_that_only_tensorrt_knew_are_listed_and_harmless(applied: Applied) -> None:
    assert "(Unnamed Layer* 12) [Constant]_output" in applied.unknown
    assert {"x0", "x3"} < set(applied.unknown), "folded into the convolutions"
    assert applied.missing == ()


def test_a_view_takes_the_scale_of_what_it_shows(amax: dict[str, float]) -> None:
    rest = {name: value for name, value in amax.items() if name != "flat"}
    found = apply_table(table(rest), foreign(), "trt")
    assert found.taken["flat"] == "pooled"
    assert constant(found.model, "flat_scale") == np.float32(amax["pooled"] / 127)


def test_a_tensor_that_the_table_lacks_is_named_with_the_nearest(amax: dict[str, float]) -> None:
    renamed = {("x2_1" if name == "x2" else name): value for name, value in amax.items()}
    with pytest.raises(CalibrationError, match=r"lacks 1 .*: x2 \(nearest: x2_1\)\.") as caught:
        apply_table(table(renamed), foreign(), "trt")
    assert "--missing float" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_that_the_table_lacks_stay_in_float_if_asked(amax: dict[str, float]) -> None:
    rest = {name: value for name, value in amax.items() if name != "x2"}
    found = apply_table(table(rest), foreign(), "trt", missing="float")
    assert found.missing == ("x2",)
    assert found.taken.keys() == POINTS - {"x2"}
    assert [reason for _, reason in found.placement.left_float]
    assert not [f for f in check(found.model, target="trt") if f.severity == "error"]


def test_a_tensor_that_no_image_excited_is_told_apart(amax: dict[str, float]) -> None:
    with pytest.raises(CalibrationError, match="x2: the table's scale is 0"):
        apply_table(table(amax | {"x2": 0.0}), foreign(), "trt")


def test_a_table_of_another_graph_is_refused_with_near_names() -> None:
    other = table({"Image_1": 2.0, "conv": 3.0}, extra=False)
    with pytest.raises(CalibrationError, match="none of the table's 2 tensors") as caught:
        apply_table(other, foreign(), "trt")
    assert "Image_1 (nearest: image)" in str(caught.value)


def test_a_table_without_any_layers_input_is_refused() -> None:
    with pytest.raises(CalibrationError, match="no layer's input"):
        apply_table(table({"logits": 2.0}), foreign(), "trt", missing="float")


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(CalibrationError, match="the calibration table has no tensors"):
        apply_table(table({}, extra=False), foreign(), "trt")


def test_the_graph_gives_an_inverted_table_away_that_values_alone_do_not(
    amax: dict[str, float],
) -> None:
    wide = amax | {"logits": 500.0}
    inverse = {name: 127 * 127 / value for name, value in wide.items()}
    with pytest.raises(CalibrationError, match=r"x2 has scale .*the graph allows \+-6"):
        apply_table(table(inverse, extra=False), foreign(), "trt")
    found = apply_table(table(inverse, extra=False), foreign(), "trt", inverted=True)
    scale = constant(found.model, "x2_scale")
    assert float(scale) == pytest.approx(amax["x2"] / 127, rel=1e-6)


def test_a_sound_table_is_not_inverted_by_mistake(amax: dict[str, float]) -> None:
    with pytest.raises(CalibrationError, match="Leave out --inverted"):
        apply_table(table(amax), foreign(), "trt", inverted=True)


def test_a_zero_point_that_tensorrt_lacks_is_refused(amax: dict[str, float]) -> None:
    record = table(amax)
    grid = QParams(np.float32(0.02), -128, 127, zero_point=-128)
    shifted = TensorCalibration(grid, 5.0, "mse", "activation")
    tensors = {**record.tensors, "x2": shifted}
    with pytest.raises(ExportError, match=r"x2: zero-point -128, and no bias can take it"):
        apply_table(CalibrationRecord(tensors, "", "", "", "", "", ""), foreign(), "trt")


def test_a_name_that_a_pair_needs_and_the_graph_has_is_refused(amax: dict[str, float]) -> None:
    model = foreign()
    for node in model.graph.node:
        node.output[:] = ["flat_scale" if name == "x5" else name for name in node.output]
        node.input[:] = ["flat_scale" if name == "x5" else name for name in node.input]
    with pytest.raises(ExportError, match=r"flat_scale: .* pair of flat needs\. Rename it"):
        apply_table(table(amax), model, "trt")


def _branch(reads: str, shape: list[int]) -> onnx.NodeProto:
    """An If whose branches read a tensor of the main graph."""
    bodies = {
        branch: helper.make_graph(
            [helper.make_node("Identity", [reads], [f"{branch}_out"])],
            branch,
            [],
            [helper.make_tensor_value_info(f"{branch}_out", TensorProto.FLOAT, shape)],
        )
        for branch in ("then_branch", "else_branch")
    }
    return helper.make_node("If", ["yes"], ["copied"], **bodies)


@pytest.mark.parametrize(("weight", "shape"), [("w0", [16, 3, 3, 3]), ("fc", [5, 16])])
def test_a_weight_that_a_body_of_if_reads_too_is_still_there_for_it(
    amax: dict[str, float], weight: str, shape: list[int]
) -> None:
    model = foreign(13, listed=False)
    model.graph.node.append(_branch(weight, shape))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.output.append(helper.make_tensor_value_info("copied", TensorProto.FLOAT, shape))
    before = run(model, images(), "copied")
    found = apply_table(table(amax), model, "trt").model
    assert np.array_equal(run(found, images(), "copied"), before)


def test_the_origin_is_written_into_the_file(applied: Applied) -> None:
    found = {entry.key: entry.value for entry in applied.model.metadata_props}
    assert found["fdda_deploy.calibration_origin"] == "TRT-101601-MinMaxCalibration"
