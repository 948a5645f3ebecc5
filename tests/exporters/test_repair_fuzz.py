"""However a graph is damaged, a repair gives a graph that can be checked, or one line."""

from __future__ import annotations

import onnx
import pytest
import repair_graphs as graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from shiftable_graphs import chain, residual
from test_trt_rules_fuzz import DAMAGES

from fdda_deploy.errors import FddaDeployError
from fdda_deploy.exporters.repair.repairing import repair
from fdda_deploy.exporters.trt_rules import TARGETS, check

MODELS = tuple(
    graphs.shaped(model).SerializeToString()
    for model in (
        graphs.integer_bias(),
        graphs.float_weight(),
        graphs.activation(0.02, 0),
        graphs.per_consumer(),
        graphs.residual(projection=True),
        graphs.depthwise(),
        graphs.qlinear_conv(),
        graphs.microsoft("QLinearConcat"),
        graphs.wrong_axis(),
        chain(60, between="Relu").model("end"),
        residual(),
    )
)


@st.composite
def damaged(draw: st.DrawFn) -> onnx.ModelProto:
    model = onnx.ModelProto.FromString(draw(st.sampled_from(MODELS)))
    for damage in draw(st.lists(st.sampled_from(DAMAGES), max_size=3)):
        damage(model, draw)
    return model


@pytest.mark.fuzz
@settings(max_examples=150)
@given(damaged(), st.sampled_from(sorted(TARGETS)), st.booleans())
def test_a_damaged_graph_is_repaired_or_refused(
    model: onnx.ModelProto, target: str, compact: bool
) -> None:
    before, told = model.SerializeToString(), ""
    try:
        result = repair(model, target=target, compact_plan=compact)
    except FddaDeployError as error:
        told = str(error)
        result = None
    assert "\n" not in told
    assert model.SerializeToString() == before, "the repair changed what it was given"
    if result is None:
        return
    assert check(result.model, target=target) is not None
    made = {name for node in result.model.graph.node for name in node.output}
    held = {tensor.name for tensor in result.model.graph.initializer}
    fed = {value.name for value in result.model.graph.input}
    for node in result.model.graph.node:
        assert set(node.input) <= made | held | fed | {""}


def test_a_circle_is_refused_before_anything_is_changed() -> None:
    g = graphs.Foreign()
    g.add("Relu", "b", out="a")
    g.add("Relu", "a", out="b")
    model = graphs.shaped(g.model(g.add("Add", "x", "b")))
    with pytest.raises(FddaDeployError, match="not sound"):
        repair(model)
