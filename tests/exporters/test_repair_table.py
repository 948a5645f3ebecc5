"""The table of repairs: numbered, tied to rules, silent on sound graphs, enough for RTX."""

from __future__ import annotations

import importlib

import onnx
import pytest
from repair_graphs import left, operators, plan_of, repaired, shaped
from trt_rules_cases import CASES, Case

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.repair.repairing import REPAIRS, repair
from fdda_deploy.exporters.trt_rules import RULES, check


def test_repairs_are_numbered_in_the_order_of_application() -> None:
    numbered = [f"R{n:02}" for n in range(1, len(REPAIRS) + 1)]
    assert sorted(entry.id for entry in REPAIRS) == numbered
    plain = [entry.id for entry in REPAIRS if not entry.compact]
    assert plain == numbered[: len(plain)]
    assert [entry.id for entry in REPAIRS if entry.compact] == numbered[len(plain) :]


def test_each_repair_clears_rules_that_exist_or_makes_a_plan_compact() -> None:
    known = {rule.id for rule in RULES}
    for entry in REPAIRS:
        assert bool(entry.rules) != entry.compact
        assert set(entry.rules) <= known
        assert entry.title.endswith(".")
        assert entry.reason.endswith(".")


def test_each_file_tells_its_number_and_its_rules_in_prose() -> None:
    for entry in REPAIRS:
        module = importlib.import_module(entry.apply.__module__)
        assert module.__doc__ is not None
        assert module.__doc__.startswith(f"{entry.id}: ")
        assert "\n1. " in module.__doc__


REPAIRED = {
    "T001 opset 26 on RTX",
    "T002 per channel",
    "T003 three",
    "T004 UINT8",
    "T004 nothing said",
    "T008 default axis is wrong",
    "T008 default axis happens to fit",
    "T015 INT32 bias",
    "T016 QLinearConv",
    "T020 pair on the branch",
    "T021 graph output",
    "T021 read by Sigmoid",
    "T025 depthwise on RTX",
    "T033 IR 14",
}
BY_ID = {case.id: case for case in CASES}


@pytest.mark.parametrize("case", [BY_ID[name] for name in sorted(REPAIRED)], ids=lambda c: c.id)
def test_the_broken_graph_of_a_rule_is_repaired_and_rtx_builds_it(case: Case) -> None:
    target = case.options.get("target", "rtx")
    result, _ = repaired(case.broken, target=target)
    assert left(result, case.rule, target=target) == []
    assert plan_of(result) is not None


@pytest.mark.parametrize("target", ["rtx", "trt11"])
def test_a_graph_without_findings_to_repair_is_returned_byte_for_byte(target: str) -> None:
    clean = {rule for entry in REPAIRS for rule in entry.rules}
    seen = 0
    for case in CASES:
        model = shaped(case.repaired)
        if case.id == "T023 two pairs":
            continue  # its twin has two equal pairs, which are no finding but one too many
        if any(finding.rule in clean for finding in check(model, target=target)):
            continue
        result = repair(model, target=target)
        assert result.applied == (), (case.id, result.applied)
        assert result.model.SerializeToString() == model.SerializeToString()
        seen += 1
    assert seen > 30


def test_repairing_twice_changes_nothing_more() -> None:
    for name in sorted(REPAIRED):
        once, _ = repaired(BY_ID[name].broken)
        assert repair(once, target="trt").applied == (), name


def test_what_is_not_sound_onnx_is_refused_in_one_line() -> None:
    model = onnx.ModelProto()  # a copy: the cases are every test's
    model.CopyFrom(shaped(BY_ID["T003 three"].broken))
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ExportError, match="is not sound, so nothing in it is repaired: ") as caught:
        repair(model)
    assert "\n" not in str(caught.value)


def test_a_node_that_makes_nothing_is_refused() -> None:
    model = onnx.ModelProto()  # a copy: the cases are every test's
    model.CopyFrom(shaped(BY_ID["T003 three"].broken))
    idle = onnx.helper.make_node("Swirl", ["x"], [], name="idle", domain="my.own")
    model.graph.node.append(idle)  # an operator of nobody's, so the ONNX checker lets it pass
    model.opset_import.append(onnx.helper.make_opsetid("my.own", 1))
    with pytest.raises(ExportError, match="idle has no output, so nothing"):
        repair(model)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ExportError, match="knows trt, trt11, "):
        repair(BY_ID["T003 three"].broken, target="ort-cpu")


def test_bodies_of_control_flow_keep_the_tensors_that_they_read() -> None:
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["d"], ["b"])],
        "body",
        [],
        [onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, None)],
    )
    names = ["scale", "zero"]
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", *names], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", *names], ["d"]),
        onnx.helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [
            onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2]),
            onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
        ],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])],
        [
            onnx.helper.make_tensor("scale", onnx.TensorProto.FLOAT, [], [0.02]),
            onnx.helper.make_tensor("zero", onnx.TensorProto.INT8, [], [0]),
        ],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10
    )
    result = repair(model, target="trt").model
    assert operators(result) == ["QuantizeLinear", "DequantizeLinear", "If"]
