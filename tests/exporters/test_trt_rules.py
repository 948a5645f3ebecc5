"""Each TensorRT rule finds its broken graph, passes its repaired twin, and says what to do."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import onnx
import pytest
import trt_rules_graphs as graphs
from onnx import TensorProto
from trt_rules_cases import CASES, SOUND, Case
from trt_rules_graphs import FLOAT, FP8, INT4, INT8, Graph

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.trt_rules import RULES, Finding, check, summary


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_a_rule_finds_its_broken_graph_and_passes_the_repaired_twin(case: Case) -> None:
    found = [f for f in check(case.broken, **case.options) if f.rule == case.rule]
    assert found, "the broken graph passed"
    matching = [finding for finding in found if case.value in finding.value]
    assert matching, found
    if case.severity:
        assert matching[0].severity == case.severity
    options = case.options if case.repaired_options is None else case.repaired_options
    left = [f for f in check(case.repaired, **options) if f.rule == case.rule]
    assert [
        finding for finding in left if finding.severity != "note" or case.severity == "note"
    ] == []


def test_every_rule_has_a_broken_graph_here() -> None:
    assert {case.rule for case in CASES} == {rule.id for rule in RULES}


def test_the_table_holds_35_rules_and_the_one_on_what_was_not_seen() -> None:
    assert [rule.id for rule in RULES] == [f"T{number:03}" for number in range(36)]
    for rule in RULES:
        assert rule.severity in {"error", "warning", "note"}
        assert rule.title.endswith(".")
        assert rule.reason.endswith(".")


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_every_message_is_one_line_that_names_place_value_reason_and_repair(case: Case) -> None:
    for finding in check(case.broken, **case.options):
        assert "\n" not in finding.message
        assert finding.value
        assert finding.why.endswith(".")
        assert finding.repair.endswith(".")
        for part in (finding.rule, finding.node, finding.tensor, finding.value, finding.why):
            assert part in finding.message


def test_a_message_reads_as_a_person_would_say_it() -> None:
    (finding,) = check(graphs.pair(zero_point=3))[:1]
    assert finding.message == (
        "T003 error: QuantizeLinear_t0, c1: zero-point 3. TensorRT quantizes symmetrically and "
        "refuses any other zero-point. Quantize symmetrically: choose the scale as amax / 127."
    )


def our_export() -> onnx.ModelProto:
    """Every construct that our own export emits, in one network."""
    g = Graph(("batch", 3, 32, 32))
    stem = g.add(
        "Conv", g.qdq("x"), g.weight([16, 3, 3, 3]), g.const(FLOAT, [16], 0.1), pads=[1] * 4
    )
    narrow = g.add("Clip", g.add("Relu", stem), g.const(FLOAT, [], 0.0), g.const(FLOAT, [], 1.5))
    act = g.qdq(narrow, 0.1)
    zeros = g.const(INT8, [16], 0)
    weight = g.const(INT8, [16, 16, 3, 3], 1), g.const(FLOAT, [16], 0.01), zeros
    main = g.add("Conv", act, g.add("DequantizeLinear", *weight, axis=0), pads=[1] * 4)
    total = g.add("Relu", g.add("Add", main, act))
    pooled = g.add("Flatten", g.add("GlobalAveragePool", total))
    logits = g.add("Gemm", g.qdq(pooled), g.weight([16, 16]), g.const(FLOAT, [16], 0.0), transB=1)
    return g.model(logits)


OWN = {
    "w8a8 network": our_export(),
    "int4 blocks, MatMul": graphs.matmul(),
    "int4 blocks, Gemm": graphs.matmul(op="Gemm", trans_b=1, axis=1, block=128),
    "weight-only convolution": graphs.conv(act=None),
}


@pytest.mark.parametrize("target", ["rtx", "trt11", "trt10.16"])
@pytest.mark.parametrize("model", OWN.values(), ids=OWN.keys())
def test_our_own_constructs_have_no_error(model: onnx.ModelProto, target: str) -> None:
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(model), full_check=True)
    assert [f for f in check(model, target=target) if f.severity == "error"] == []


def test_our_own_network_has_no_finding_at_all_when_profiles_are_given() -> None:
    assert check(our_export(), target="trt", profiles_given=True) == ()


def test_an_int4_convolution_of_ours_is_no_error_on_rtx() -> None:
    model = graphs.conv(act=None, weight_type=INT4)
    assert {f.severity for f in check(model, target="rtx")} <= {"warning", "note"}


@pytest.mark.parametrize(
    ("target", "repair"), [("rtx", "Nothing to do."), ("trt", "Quantize it if it is slow")]
)
def test_a_layer_left_in_float_is_named_with_its_reason(target: str, repair: str) -> None:
    g = Graph()
    quantized = g.add("Conv", g.qdq("x"), g.weight([16, 16, 3, 3]), pads=[1] * 4)
    depthwise = g.const(FLOAT, [16, 1, 3, 3], 0.1)
    model = g.model(g.add("Conv", quantized, depthwise, out="y", group=16, pads=[1] * 4))
    (finding,) = [f for f in check(model, target=target) if f.rule == "T034"]
    assert finding.node == "Conv_y"
    assert finding.repair.startswith(repair)
    assert "grouped convolution with 1 channels per group" in finding.value


def test_weights_outside_the_file_do_not_hide_the_rest() -> None:
    model = graphs.pair(zero_point=3)
    scale = model.graph.initializer[0]
    scale.ClearField("float_data")
    scale.data_location = TensorProto.EXTERNAL
    scale.external_data.add(key="location", value="/etc/passwd")
    found = {(f.rule, f.value) for f in check(model) if f.severity == "error"}
    assert ("T005", "cannot be read") in found
    assert ("T003", "zero-point 3") in found


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (SOUND, {"target": "ort-cpu"}, "target 'ort-cpu': the TensorRT check knows trt, trt11"),
        (onnx.ModelProto(), {}, "has no nodes"),
        (b"bytes", {}, "want an onnx.ModelProto, got bytes. Use onnx.load."),
    ],
    ids=["target", "empty", "bytes"],
)
def test_what_cannot_be_checked_is_refused(
    model: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError) as caught:
        check(model, **options)
    assert message in str(caught.value)


def test_findings_survive_json() -> None:
    found = check(graphs.pair(zero_point=3))
    written = json.dumps([dataclasses.asdict(finding) for finding in found])
    assert tuple(Finding(**entry) for entry in json.loads(written)) == found


def test_the_summary_counts_and_puts_errors_first() -> None:
    lines = summary(check(graphs.conv(act=FP8, weight_type=INT8, opset=18, axis=1))).splitlines()
    assert lines[0].startswith("TensorRT check: ")
    severities = [
        line.split()[1].rstrip(":") for line in lines[1:] if "more of the same" not in line
    ]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert severities[0] == "error"


def test_the_summary_cuts_a_long_rule_short() -> None:
    g = Graph()
    x = "x"
    for _ in range(5):
        x = g.qdq(x, 0.0)
    lines = summary(check(g.model(g.add("Relu", x)))).splitlines()
    assert sum(line.startswith("T005 error") for line in lines) == 3
    assert "T005: 7 more of the same." in lines
