"""config.pbtxt says what Triton needs, and nothing else gets into it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protobuf_text import read_config

from fdda_deploy.engines.triton import NAME, TritonModel, config_pbtxt, quoted, triton_name
from fdda_deploy.errors import ConfigError

INPUT = {"name": "input", "dtype": "float32", "shape": [None, 3, 224, 224]}
OUTPUT = {"name": "logits", "dtype": "float32", "shape": [None, 1000]}
PLAN = TritonModel("resnet", "plan", (INPUT,), (OUTPUT,), (1, 8, 64), True, True)
GRAPH = replace(PLAN, loads="graph", has_labels=False)


def test_a_tensorrt_plan_is_loaded_by_the_tensorrt_backend_on_gpus() -> None:
    assert read_config(config_pbtxt(PLAN)) == {
        "name": "resnet",
        "platform": "tensorrt_plan",
        "max_batch_size": 64,
        "input": [{"name": "input", "data_type": "TYPE_FP32", "dims": [3, 224, 224]}],
        "output": [
            {
                "name": "logits",
                "data_type": "TYPE_FP32",
                "dims": [1000],
                "label_filename": "labels.txt",
            }
        ],
        "instance_group": [{"count": 1, "kind": "KIND_GPU"}],
        "dynamic_batching": {
            "preferred_batch_size": [8, 64],
            "max_queue_delay_microseconds": 100,
        },
    }


def test_a_graph_is_run_by_onnx_runtime_with_tensorrt_and_the_plans_shapes() -> None:
    text = config_pbtxt(GRAPH)
    found = read_config(text)
    assert found["platform"] == "onnxruntime_onnx"
    (accelerator,) = found["optimization"]["execution_accelerators"]["gpu_execution_accelerator"]
    assert accelerator["name"] == "tensorrt"
    assert {row["key"]: row["value"] for row in accelerator["parameters"]} == {
        "precision_mode": "INT8",
        "trt_profile_min_shapes": "input:1x3x224x224",
        "trt_profile_opt_shapes": "input:8x3x224x224",
        "trt_profile_max_shapes": "input:64x3x224x224",
    }
    assert "does not load TensorRT-RTX plans" in text
    assert "label_filename" not in found["output"][0]


def test_a_graph_for_the_cpu_has_no_accelerator() -> None:
    found = read_config(config_pbtxt(replace(GRAPH, on_gpu=False)))
    assert found["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]
    assert "optimization" not in found


def test_a_fixed_batch_is_part_of_the_shape_and_not_batched_by_triton() -> None:
    fixed: dict[str, Any] = {"name": "input", "dtype": "float32", "shape": [4, 3, 8, 8]}
    out: dict[str, Any] = {"name": "logits", "dtype": "float16", "shape": [4, 10]}
    found = read_config(
        config_pbtxt(replace(GRAPH, inputs=(fixed,), outputs=(out,), batch=(4, 4, 4)))
    )
    assert found["max_batch_size"] == 0
    assert found["input"][0]["dims"] == [4, 3, 8, 8]
    assert found["output"][0]["data_type"] == "TYPE_FP16"
    assert "dynamic_batching" not in found


def test_a_largest_batch_of_one_needs_no_batching() -> None:
    found = read_config(config_pbtxt(replace(PLAN, batch=(1, 1, 1))))
    assert found["max_batch_size"] == 1
    assert "dynamic_batching" not in found


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a b", "x" * 101, 'a"b', "a\n"])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--triton-name"):
        replace(PLAN, name=name)


@pytest.mark.fuzz
@given(st.text(max_size=200))
def test_any_model_name_gives_a_name_that_triton_takes(model: str) -> None:
    assert NAME.fullmatch(triton_name(model))


@pytest.mark.fuzz
@given(st.text(max_size=60))
def test_a_tensor_name_comes_back_as_it_was_and_adds_no_field(name: str) -> None:
    tensor = {**INPUT, "name": name}
    found = read_config(config_pbtxt(replace(PLAN, inputs=(tensor,))))
    assert found["input"] == [{"name": name, "data_type": "TYPE_FP32", "dims": [3, 224, 224]}]
    assert quoted(name).isascii()


@pytest.mark.parametrize(
    "text",
    ["nonsense: 1", 'name: "a" name: "b"', "max_batch_size: x", "input {", 'name "a"', "name: @"],
)
def test_the_reader_of_these_tests_is_strict(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any refusal will do
        read_config(text)
