"""A refusal by the real builder names our node, the rule it breaks and the repair."""

from __future__ import annotations

import re

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refused_graphs import REFUSED

from fdda_deploy.engines.build_log import CHECK, REFUSALS, advice, explain
from fdda_deploy.engines.build_options import BuildOptions
from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_build import build_plan
from fdda_deploy.errors import BuildError
from fdda_deploy.exporters.trt_rules import RULES

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux x86-64")
TITLES = {rule.id: rule for rule in RULES}
NAMED_BY_NO_ONE = {"int4 beside int8", "too little workspace"}
"""The compiler behind the builder does not say which layer it means."""


@pytest.mark.parametrize(("rule", "model", "options"), REFUSED.values(), ids=REFUSED.keys())
def test_the_real_builder_is_understood(
    rule: str, model: onnx.ModelProto, options: BuildOptions, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(BuildError) as caught:
        build_plan(model.SerializeToString(), options, load_api("tensorrt_rtx"))
    message = str(caught.value)
    assert "\n" not in message
    assert CHECK not in message
    assert re.findall(r"\bT0\d\d\b", message) == ([rule] if rule else [])
    case = request.node.callspec.id
    names = {node.name for node in model.graph.node} | {t.name for t in model.graph.initializer}
    named = re.split(r": | \(", message, maxsplit=1)[0]
    assert (named == "the graph") == (case in NAMED_BY_NO_ONE)
    assert named == "the graph" or named in names


def test_every_rule_named_is_one_of_the_checker_s() -> None:
    assert {row.rule for row in REFUSALS} - {""} <= TITLES.keys()


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("T003", "zero"),
        ("T005", "scale"),
        ("T006", "zero-point"),
        ("T008", "axis"),
        ("T013", "INT4"),
        ("T015", "bias"),
        ("T016", "Q"),
        ("T027", "FP8"),
        ("T032", "profile"),
    ],
)
def test_rule_and_repair_speak_of_the_same_thing(rule: str, words: str) -> None:
    ours = " ".join(row.sentence() for row in REFUSALS if row.rule == rule)
    theirs = f"{TITLES[rule].title} {TITLES[rule].reason}"
    assert words.lower() in ours.lower()
    assert words.lower() in theirs.lower()


def test_every_row_is_marked_by_where_it_was_seen_and_provoked_if_here() -> None:
    assert {row.source for row in REFUSALS} == {"run", "doc"}
    provoked = {rule for rule, _, _ in REFUSED.values()} - {""}
    assert {row.rule for row in REFUSALS if row.source == "run"} - {""} <= provoked


def test_words_that_no_row_knows_point_to_the_checker() -> None:
    assert advice("the moon is full") == CHECK
    assert explain("false", "Softmax") is None


def test_advice_is_whole_sentences() -> None:
    for row in REFUSALS:
        assert re.match(r"(T\d{3}: )?\S.*[a-z0-9)]\. [A-Z`].*\.$", row.sentence())


@pytest.mark.fuzz
@settings(max_examples=200, deadline=None)
@given(st.text(), st.text(max_size=20))
def test_any_words_get_one_answer(words: str, operator: str) -> None:
    assert advice(words, operator)
