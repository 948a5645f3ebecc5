"""However a graph is damaged, the check answers with findings, or with an ExportError."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import onnx
import pytest
import trt_rules_graphs as graphs
import trt_rules_networks as networks
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from test_trt_rules import our_export
from trt_rules_cases import CASES

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.trt_rules import TARGETS, Finding, check, summary

MODELS = tuple(
    model.SerializeToString()
    for model in (our_export(), *(case.broken for case in CASES), networks.residual(shortcut=True))
)
NUMBERS = st.integers(-3, 40) | st.sampled_from([2**31 - 1, -(2**31)])


def rename_tensor(model: onnx.ModelProto, draw: st.DrawFn) -> None:
    node = draw(st.sampled_from(list(model.graph.node)))
    names = sorted({name for n in model.graph.node for name in (*n.input, *n.output)} | {"", "?"})
    side = draw(st.sampled_from([side for side in (node.input, node.output) if side] or [[""]]))
    side[draw(st.integers(0, len(side) - 1))] = draw(st.sampled_from(names))


def drop_input(model: onnx.ModelProto, draw: st.DrawFn) -> None:
    node = draw(st.sampled_from(list(model.graph.node)))
    side = draw(st.sampled_from([node.input, node.output]))
    if side:
        del side[draw(st.integers(0, len(side) - 1)) :]


def change_operator(model: onnx.ModelProto, draw: st.DrawFn) -> None:
    node = draw(st.sampled_from(list(model.graph.node)))
    operators = sorted({n.op_type for n in model.graph.node} | {"", "Constant", "Transpose", "Foo"})
    node.op_type = draw(st.sampled_from(operators))
    node.domain = draw(st.sampled_from(["", "com.microsoft", "my.own"]))


def change_attribute(model: onnx.ModelProto, draw: st.DrawFn) -> None:
    node = draw(st.sampled_from(list(model.graph.node)))
    if node.attribute and draw(st.booleans()):
        attribute = draw(st.sampled_from(list(node.attribute)))
        if draw(st.booleans()):
            node.attribute.remove(attribute)
            return
    else:
        attribute = node.attribute.add()
    names = ["axis", "block_size", "output_dtype", "perm", "transB", "group", "value", "value_ints"]
    attribute.name = draw(st.sampled_from(names))
    attribute.type = draw(st.integers(0, 14))
    attribute.i = draw(NUMBERS)
    attribute.ints.extend(draw(st.lists(NUMBERS, max_size=4)))


def change_tensor(model: onnx.ModelProto, draw: st.DrawFn) -> None:
    if not model.graph.initializer:
        return
    tensor = draw(st.sampled_from(list(model.graph.initializer)))
    what = draw(st.sampled_from(["type", "dims", "data", "name", "location"]))
    if what == "type":
        tensor.data_type = draw(st.integers(0, 30))
    elif what == "dims":
        del tensor.dims[:]
        tensor.dims.extend(draw(st.lists(NUMBERS, max_size=5)))
    elif what == "data":
        tensor.raw_data = draw(st.binary(max_size=9))
    elif what == "name":
        tensor.name = draw(st.sampled_from(["", "x", "c0", "c1"]))
    else:
        tensor.data_location = TensorProto.EXTERNAL


def change_value(model: onnx.ModelProto, draw: st.DrawFn) -> None:
    values = [*model.graph.input, *model.graph.output]
    if not values:
        return
    value = draw(st.sampled_from(values))
    if draw(st.booleans()):
        value.type.tensor_type.elem_type = draw(st.integers(0, 30))
    else:
        value.type.tensor_type.shape.dim.add().dim_value = draw(NUMBERS)


def change_version(model: onnx.ModelProto, draw: st.DrawFn) -> None:
    model.ir_version = draw(st.integers(0, 99))
    if draw(st.booleans()):
        del model.opset_import[:]
    else:
        model.opset_import.add(domain="", version=draw(NUMBERS))


def reorder(model: onnx.ModelProto, draw: st.DrawFn) -> None:
    node = draw(st.sampled_from(list(model.graph.node)))
    copy = onnx.NodeProto.FromString(node.SerializeToString())
    if draw(st.booleans()):
        model.graph.node.remove(node)
    model.graph.node.append(copy)


DAMAGES: tuple[Callable[[onnx.ModelProto, Any], None], ...] = (
    rename_tensor,
    drop_input,
    change_operator,
    change_attribute,
    change_tensor,
    change_value,
    change_version,
    reorder,
)


@st.composite
def mangled(draw: st.DrawFn) -> onnx.ModelProto:
    model = onnx.ModelProto.FromString(draw(st.sampled_from(MODELS)))
    for damage in draw(st.lists(st.sampled_from(DAMAGES), min_size=1, max_size=4)):
        damage(model, draw)
    return model


@pytest.mark.fuzz
@settings(max_examples=400, deadline=None)
@given(mangled(), st.sampled_from(sorted(TARGETS)), st.lists(NUMBERS, max_size=2))
def test_a_mangled_model_gives_findings_or_an_export_error(
    model: onnx.ModelProto, target: str, capabilities: list[int]
) -> None:
    before = model.SerializeToString()
    findings: tuple[Finding, ...] = ()
    with suppress(ExportError):
        findings = check(model, target=target, compute_capabilities=tuple(capabilities))
    assert model.SerializeToString() == before, "the check changed the model"
    for finding in findings:
        assert "\n" not in finding.message
    json.dumps([dataclasses.asdict(finding) for finding in findings])
    assert summary(findings).startswith("TensorRT check: ")


@pytest.mark.fuzz
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
@example(MODELS[0][:-20])
def test_bytes_that_parse_as_a_model_can_be_checked(data: bytes) -> None:
    model = onnx.ModelProto()
    with suppress(Exception):  # protobuf refuses most of them, with types of its own
        model.ParseFromString(data)
    with suppress(ExportError):
        check(model)


def test_a_circle_of_operators_ends() -> None:
    g = graphs.Graph()
    g.add("Reshape", "b", "x", out="a")
    g.add("Identity", "a", out="b")
    g.add("Transpose", "b", out="t")
    g.add("QuantizeLinear", "b", "a", "b", out="q")
    g.add("DequantizeLinear", "b", "a", "b", out="b2")
    model = g.model(g.add("Conv", "b", "t"))
    assert {"T003", "T005"} <= {finding.rule for finding in check(model)}
