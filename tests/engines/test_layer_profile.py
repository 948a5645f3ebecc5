"""Per-layer time joined to precision: both schemas, and what was left unfused is named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wild import refusal_of

from fdda_deploy.engines.layer_info import EngineLayer, layers_from_json, precision_of
from fdda_deploy.engines.layer_profile import (
    finding_of,
    milliseconds_by_precision,
    profile_from_json,
)
from fdda_deploy.engines.layer_times import profile_to_json, profiler_of
from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.errors import EngineError


def tensor10(name: str, kind: str) -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": [1, 16], "Format/Datatype": kind}


def tensor11(name: str, kind: str) -> dict[str, Any]:
    return {"Name": name, "Dimensions": [1, 16], "Format": "LINEAR", "Datatype": kind}


def document(tensor: Any, tail: dict[str, Any]) -> dict[str, Any]:
    """Returns the same four layers as either release writes them."""
    names = ("FP32", "INT8") if tensor is tensor11 else ("Row major linear FP32", "Int8 NCHW32")
    wide, narrow = names
    return {
        "Layers": [
            {
                "Name": "Reformatting CopyNode for Input Tensor 0 to conv1",
                "LayerType": "Reformat",
                "Inputs": [tensor("input", wide)],
                "Outputs": [tensor("r", wide)],
            },
            {
                "Name": "input/QuantizeLinear",
                "LayerType": "Scale",
                "Inputs": [tensor("r", wide)],
                "Outputs": [tensor("q", narrow)],
            },
            {
                "Name": "conv1.weight/DequantizeLinear + conv1",
                "LayerType": "CaskConvolution",
                "Inputs": [tensor("q", narrow)],
                "Outputs": [tensor("a", narrow)],
                "Weights": {"Type": "Int8", "Count": 432},
                "TacticName": "sm80_xmma_fprop_implicit_gemm_i8i8",
                "Metadata": "[ONNX Layer: conv1][ONNX Layer: conv1.weight/DequantizeLinear]",
            },
            {
                "Name": "fc",
                "LayerType": "gemm",
                "Inputs": [tensor("a", wide)],
                "Outputs": [tensor("logits", wide)],
            },
        ],
        **tail,
    }


SCHEMAS = {
    "10": document(tensor10, {"Bindings": ["input", "logits"]}),
    "11": document(tensor11, {"I/O Tensors": [{"Name": "input"}, {"Name": "logits"}]}),
}
PROFILE = [
    {"count": 100},
    *(
        {"name": layer["Name"], "timeMs": 100 * ms, "averageMs": ms, "medianMs": ms}
        for layer, ms in zip(SCHEMAS["10"]["Layers"], (1.0, 2.0, 4.0, 1.0), strict=True)
    ),
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_both_releases_tell_the_same(schema: str) -> None:
    found = layers_from_json(SCHEMAS[schema], "layers.json")
    assert (found.schema, found.tensors) == (schema, ("input", "logits"))
    assert [layer.precision for layer in found.layers] == ["FP32", "FP32", "INT8", "FP32"]
    assert found.layers[2].operators == ("conv1", "conv1.weight/DequantizeLinear")
    assert found.layers[2].tactic == "sm80_xmma_fprop_implicit_gemm_i8i8"


@pytest.mark.parametrize("schema", SCHEMAS)
def test_profile_names_reformats_unfused_pairs_and_float_products(schema: str) -> None:
    layers = layers_from_json(SCHEMAS[schema], "layers.json").layers
    rows = profile_from_json(PROFILE, "profile.json", layers)
    assert [row.finding for row in rows] == ["reformat", "unfused Q/DQ", None, "float"]
    assert [row.percent for row in rows] == [12.5, 25, 50, 12.5]
    assert milliseconds_by_precision(rows) == {"FP32": 4.0, "INT8": 4.0}


def test_profile_alone_leaves_the_precision_unknown() -> None:
    rows = profile_from_json(PROFILE, "profile.json")
    assert {row.precision for row in rows} == {None}
    assert rows[0].finding == "reformat", "its name tells"
    assert milliseconds_by_precision(rows) == {"unknown": 8.0}


def test_engine_of_names_alone_is_read() -> None:
    found = layers_from_json({"Layers": ["conv1", "fc"], "Bindings": []}, "x")
    assert [layer.name for layer in found.layers] == ["conv1", "fc"]
    assert {layer.precision for layer in found.layers} == {None}


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format.", "INT8"),
        ("Row major linear FP16 format", "FP16"),
        ("Half", "FP16"),
        ("Float", "FP32"),
        ("BFloat16", "BF16"),
        ("FP8", "FP8"),
        ("Int32", "INT32"),
        ("N/A due to dynamic shapes", None),
    ],
)
def test_precision_is_read_off_either_way_of_writing(text: str, precision: str | None) -> None:
    assert precision_of(text) == precision


@pytest.mark.parametrize(
    ("layer", "finding"),
    [
        (EngineLayer("a/QuantizeLinear", "kgen"), "unfused Q/DQ"),
        (EngineLayer("a/DequantizeLinear + a/QuantizeLinear", "PointWiseV2"), "unfused Q/DQ"),
        (EngineLayer("w/DequantizeLinear + conv", "CaskConvolution", ("INT8",)), None),
        (EngineLayer("x/DequantizeLinear_x/QuantizeLinear_conv", "CaskConvolution"), None),
        (EngineLayer("pool", "CaskPooling", ("FP32",)), None),
        (EngineLayer("conv", "CaskConvolution", ("FP16",)), None),
        (EngineLayer("conv", "Convolution", ("FP32",)), "float"),
    ],
    ids=lambda value: value.name if isinstance(value, EngineLayer) else "",
)
def test_findings_fit_the_layer(layer: EngineLayer, finding: str | None) -> None:
    assert finding_of(layer) == finding


@pytest.mark.parametrize(
    ("read", "bad", "message"),
    [
        (profile_from_json, {}, "x: no list, want one object per layer"),
        (profile_from_json, [{"count": 3}], "x: no layer in it"),
        (profile_from_json, [{"averageMs": 1}], "x: layer 0 has no name"),
        (profile_from_json, [{"name": "a", "averageMs": "1"}], "layer 0, a: averageMs is no time"),
        (layers_from_json, [], "x: no list named Layers"),
        (layers_from_json, {"Layers": [{}]}, "x: layer 0 has no name"),
    ],
    ids=["no list", "no layer", "no name", "no time", "no layers", "nameless"],
)
def test_other_documents_are_refused(read: Any, bad: object, message: str) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        read(bad, "x")
    assert "Write it with trtexec --export" in str(caught.value)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("Layers", "Name", "Inputs", "Outputs", "Weights", "Type", "Format"),
                    *("Datatype", "Bindings", "I/O Tensors", "Metadata"),
                    *("name", "averageMs", "count"),
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@pytest.mark.fuzz
@given(anything)
def test_any_json_is_read_or_refused_in_one_line(value: object) -> None:
    for read in (profile_from_json, layers_from_json):
        assert "\n" not in refusal_of(lambda read=read: read(value, "x"))


def test_collected_times_come_out_as_trtexec_writes_them() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="has wheels for Linux x86-64 only")
    profiler = profiler_of(load_api("tensorrt_rtx"))
    for ms in (1.0, 3.0):
        profiler.report_layer_time("conv1", ms)
        profiler.report_layer_time("fc", 1.0)
    written = profiler.to_json()
    assert written[0] == {"count": 2}
    rows = profile_from_json(written, "x")
    assert [(row.name, row.mean_ms, row.median_ms) for row in rows] == [
        ("conv1", 2.0, 2.0),
        ("fc", 1.0, 1.0),
    ]
    assert written[1]["percentage"] == pytest.approx(100 * 4 / 6)
    assert profile_to_json({}) == [{"count": 0}]
