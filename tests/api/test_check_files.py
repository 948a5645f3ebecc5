"""`check` on an ONNX file: findings, a proved repair, and settings that a file does not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fdda_deploy
from fdda_deploy.errors import ConfigError, ExportError


@pytest.fixture
def file(tmp_path: Path) -> str:
    """x -> QuantizeLinear -> DequantizeLinear -> y with a zero-point, which TensorRT refuses."""
    constants = [
        numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
        numpy_helper.from_array(np.array(3, np.int8), "zero_point"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"], name="back"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "pair", ends[:1], ends[1:], constants)
    path = tmp_path / "model.onnx"
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return str(path)


def test_findings_come_with_their_rule_and_are_counted(file: str) -> None:
    found = fdda_deploy.check(file, target="rtx", sm=(86,))
    assert not found.passed
    assert found.errors >= 1
    assert "T003" in {finding.rule for finding in found.findings}
    assert found.out is found.fix is None


def test_a_repair_is_written_and_proved(file: str, tmp_path: Path) -> None:
    out = tmp_path / "fixed.onnx"
    found = fdda_deploy.check(file, fix=True, out=out, seed=1, tolerance=0.5)
    assert found.out == out
    assert found.fix is not None
    assert found.fix.proof is not None
    assert "T003" not in {finding.rule for finding in found.findings}
    assert "T003" not in {f.rule for f in fdda_deploy.check(str(out)).findings}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 4}, "check(bits=...): has no meaning for an ONNX file."),
        ({"config": "a.toml"}, "check(config=...): has no meaning for an ONNX file."),
        ({"target": "rxt"}, "check(target=...): unknown 'rxt'. Did you mean 'rtx'?"),
        ({"fix": True}, "check(fix=True): give out=, another file than model."),
        ({"out": "b.onnx"}, "check: out=, feed= and tolerance= go with fix=True."),
        ({"compact_plan": True}, "--compact-plan: goes with --fix. Add --fix, or leave"),
        ({"sm": (8,)}, "--sm: got 8, wanted 50 or more."),
        ({"flags": ["FP16"]}, "check(flags=...): unknown setting. Did you mean 'flag'?"),
    ],
)
def test_what_makes_no_sense_for_a_file_is_refused(
    file: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        fdda_deploy.check(file, **settings)
    assert str(caught.value).startswith(message)


def test_the_model_is_never_overwritten(file: str) -> None:
    with pytest.raises(ConfigError, match="another file than model"):
        fdda_deploy.check(file, fix=True, out=file)


def test_settings_of_a_file_are_refused_for_a_network() -> None:
    with pytest.raises(ConfigError, match=r"check\(fix=...\): only where model is an ONNX file"):
        fdda_deploy.check("digits", fix=True)


def test_a_file_that_is_missing_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="No such file"):
        fdda_deploy.check(str(tmp_path / "absent.onnx"))
