"""SARIF 2.1.0: what its schema requires is there, and a place is a node in a relative file."""

from __future__ import annotations

import json
from pathlib import PurePosixPath, PureWindowsPath

import pytest
import trt_rules_graphs as graphs

from fdda_deploy.exporters.sarif import relative_uri, to_sarif
from fdda_deploy.exporters.trt_rules import RULES, check

LOG = to_sarif(check(graphs.pair(zero_point=3)), PurePosixPath("models/a b.onnx"), "1.2.3")


def test_the_fields_that_the_schema_requires_are_there() -> None:
    assert LOG["version"] == "2.1.0"
    (run,) = LOG["runs"]
    assert run["tool"]["driver"]["name"] == "fdda-deploy check"
    assert run["tool"]["driver"]["version"] == "1.2.3"
    for rule in run["tool"]["driver"]["rules"]:
        assert rule["id"]
        assert rule["shortDescription"]["text"]
        assert rule["defaultConfiguration"]["level"] in {"error", "warning", "note"}
    for result in run["results"]:
        assert result["message"]["text"]
        assert result["level"] in {"error", "warning", "note"}
        rules = run["tool"]["driver"]["rules"]
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    assert json.loads(json.dumps(LOG, allow_nan=False)) == LOG


def test_a_place_is_a_node_and_a_tensor_in_a_relative_file() -> None:
    result = LOG["runs"][0]["results"][0]
    (location,) = result["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "models/a%20b.onnx"
    assert location["logicalLocations"] == [
        {"name": "QuantizeLinear_t0", "kind": "function"},
        {"name": "c1", "kind": "variable"},
    ]


def test_a_finding_on_the_whole_model_has_no_logical_place() -> None:
    (run,) = to_sarif(check(graphs.conv(ir=14)), PurePosixPath("a.onnx"), "1")["runs"]
    (result,) = [r for r in run["results"] if r["ruleId"] == "T033"]
    assert [place["kind"] for place in result["locations"][0]["logicalLocations"]] == ["variable"]


def test_every_rule_is_described_once() -> None:
    rules = LOG["runs"][0]["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.id for rule in RULES]


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        (PurePosixPath("a.onnx"), "a.onnx"),
        (PurePosixPath("./x/../a.onnx"), "x/../a.onnx"),
        (PurePosixPath("/home/me/a.onnx"), "a.onnx"),
        (PureWindowsPath("m\\größe.onnx"), "m/gr%C3%B6%C3%9Fe.onnx"),
    ],
    ids=["plain", "dotted", "absolute", "windows"],
)
def test_uris_are_relative_and_encoded(path: PurePosixPath, uri: str) -> None:
    assert relative_uri(path) == uri
