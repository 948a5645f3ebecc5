"""The real TensorRT-RTX builder, on the CPU."""

from __future__ import annotations

import dataclasses
import types

import pytest
from engine_graphs import residual_float, residual_w8a8, with_int4_weight
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from fdda_deploy.engines.trt_api import TrtApi, gpu_present, load_api
from fdda_deploy.engines.trt_build import BuildOptions, build_plan
from fdda_deploy.errors import BuildError, ConfigError, MissingBackendError

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux x86-64")


@pytest.fixture(scope="module")
def api() -> TrtApi:
    return load_api("tensorrt_rtx")


def refusal_of(model: bytes, api: TrtApi, options: BuildOptions | None = None) -> str:
    with pytest.raises(BuildError) as caught:
        build_plan(model, options or BuildOptions(), api)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("targets", [(), (86, 89)], ids=["portable", "sm86-and-sm89"])
def test_w8a8_residual_network_builds_a_plan(api: TrtApi, targets: tuple[int, ...]) -> None:
    built = build_plan(residual_w8a8().SerializeToString(), BuildOptions(targets), api)
    assert len(built.plan) > 10_000
    assert (built.backend, built.version) == ("tensorrt_rtx", api.version)
    assert built.seconds > 0
    assert not [line for line in built.log if line.startswith(("ERROR", "INTERNAL"))]


def test_compute_capabilities_reach_the_builder(api: TrtApi) -> None:
    model = residual_w8a8().SerializeToString()
    portable, aimed = (build_plan(model, BuildOptions(sm), api).plan for sm in ((), (86, 89)))
    assert len(portable) != len(aimed)


def test_integer_weights_stay_integers_in_the_plan(api: TrtApi) -> None:
    quantized, in_float = (
        len(build_plan(model.SerializeToString(), BuildOptions(), api).plan)
        for model in (residual_w8a8(channels=384), residual_float(channels=384))
    )
    assert quantized < 0.5 * in_float


def test_every_option_is_accepted_by_the_builder(api: TrtApi) -> None:
    options = BuildOptions((86, 120), 2, 4, 16, workspace_bytes=1 << 28, optimization_level=1)
    assert build_plan(residual_w8a8().SerializeToString(), options, api).plan


def test_fixed_batch_builds_without_a_profile(api: TrtApi) -> None:
    assert build_plan(residual_w8a8(batch=4).SerializeToString(), BuildOptions(), api).plan


def test_int32_bias_is_refused_by_the_name_of_its_node(api: TrtApi) -> None:
    message = refusal_of(residual_w8a8(int32_bias=True).SerializeToString(), api)
    assert message.startswith("conv2.bias/dequantize (DequantizeLinear): TensorRT-RTX ")
    assert "Int32" in message
    assert "fdda-deploy check" in message
    assert "cudaError" not in message


def test_node_that_parses_and_cannot_be_built_is_a_build_error(api: TrtApi) -> None:
    model = with_int4_weight(residual_w8a8(), "conv2.weight")
    message = refusal_of(model.SerializeToString(), api)
    assert "parsed it but cannot build it" in message
    assert "CHECK(dtype == W.type())" in message
    assert "fdda-deploy check" in message


def test_node_that_one_gpu_lacks_is_named_with_the_gpu(api: TrtApi) -> None:
    message = refusal_of(residual_w8a8().SerializeToString(), api, BuildOptions((75, 89)))
    assert message.startswith("logits: ")
    assert "Turing (SM75)" in message
    assert message.endswith("Leave 75 out of --sm, or quantize the layer.")


def test_unknown_operator_is_refused_by_the_name_of_its_node(api: TrtApi) -> None:
    model = residual_w8a8()
    model.graph.node[-1].op_type = "Frobnicate"
    message = refusal_of(model.SerializeToString(), api)
    assert message.startswith("logits (Frobnicate) is not sound ONNX: No Op registered")


def test_operator_without_a_plugin_is_refused_by_the_name_of_its_node(api: TrtApi) -> None:
    model = residual_w8a8()
    model.graph.node[-1].op_type = "Frobnicate"
    model.graph.node[-1].domain = "example.org"
    model.opset_import.append(helper.make_opsetid("example.org", 1))
    message = refusal_of(model.SerializeToString(), api)
    assert message.startswith("logits (Frobnicate): TensorRT-RTX ")
    assert "Plugin not found" in message


def test_bytes_that_are_no_onnx_model_are_named_as_such(api: TrtApi) -> None:
    for damaged in (b"no protobuf at all", b""):
        message = refusal_of(damaged, api)
        assert message.startswith(f"the ONNX model of {len(damaged)} bytes is not sound ONNX: ")
        assert message.endswith("Export it again.")


def test_graph_without_an_output_is_refused(api: TrtApi) -> None:
    model = residual_w8a8()
    del model.graph.output[:]
    assert "1 inputs and 0 outputs" in refusal_of(model.SerializeToString(), api)


@pytest.mark.parametrize("name", [b"input", b"relu2", b"conv2.weight"])
def test_name_that_is_not_utf8_is_refused(api: TrtApi, name: bytes) -> None:
    damaged = residual_w8a8().SerializeToString().replace(name, name[:-1] + b"\xff")
    assert "is not UTF-8. Rename it" in refusal_of(damaged, api)


def test_node_without_outputs_is_refused_before_it_crashes_the_parser(api: TrtApi) -> None:
    model = residual_w8a8()
    del model.graph.node[-1].output[:]
    assert "logits (Gemm) is not sound ONNX" in refusal_of(model.SerializeToString(), api)


@settings(max_examples=25, deadline=None)
@given(keep=st.floats(0.0, 0.999))
def test_truncated_model_never_builds_a_plan_silently(keep: float) -> None:
    model = residual_w8a8().SerializeToString()
    refusal_of(model[: int(keep * len(model))], load_api("tensorrt_rtx"))


def test_dynamic_image_size_is_refused_by_the_input_s_name(api: TrtApi) -> None:
    model = residual_w8a8()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    message = refusal_of(model.SerializeToString(), api)
    assert message.startswith("input input: shape (-1, 3, -1, 16)")
    assert "--input-size" in message


def test_unknown_compute_capability_lists_the_known_ones(api: TrtApi) -> None:
    with pytest.raises(ConfigError, match=r"--sm 61: TensorRT-RTX .* knows 75, 80, 86"):
        build_plan(b"", BuildOptions((86, 61)), api)


def test_compute_capability_named_twice_is_refused(api: TrtApi) -> None:
    with pytest.raises(ConfigError, match="same compute capability twice"):
        build_plan(b"", BuildOptions((86, 86)), api)


def full_tensorrt(api: TrtApi) -> TrtApi:
    """TensorRT-RTX's module under the constraints of TensorRT, which is installed nowhere here."""
    capabilities = dataclasses.replace(
        api.capabilities, builds_without_gpu=False, compute_capabilities=frozenset()
    )
    return dataclasses.replace(api, flavour="tensorrt", capabilities=capabilities)


@pytest.mark.skipif(gpu_present(), reason="the claim is about a machine without a GPU")
def test_builder_that_needs_a_gpu_says_so_and_names_the_way_out(api: TrtApi) -> None:
    with pytest.raises(MissingBackendError, match=r"no NVIDIA GPU is visible\. Use --backend rtx"):
        build_plan(b"", BuildOptions(), full_tensorrt(api))


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_present(), reason="no NVIDIA GPU is visible")
def test_compute_capability_is_refused_where_the_builder_cannot_aim(api: TrtApi) -> None:
    with pytest.raises(ConfigError, match="builds for the GPU it runs on"):
        build_plan(b"", BuildOptions((86,)), full_tensorrt(api))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_batch": 0}, "want 1 <= min <= opt <= max"),
        ({"opt_batch": 65}, "min 1, opt 65, max 64"),
        ({"workspace_bytes": 0}, "workspace of 0 bytes"),
        ({"optimization_level": 6}, "optimization level 6: want 0 to 5"),
    ],
    ids=["empty batch", "opt above max", "no workspace", "level too high"],
)
def test_options_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BuildOptions(**options)


def test_kept_error_holds_no_part_of_tensorrt(api: TrtApi) -> None:
    """A part that outlives its builder is freed after it, through a dangling pointer."""
    dynamic = residual_w8a8()
    dynamic.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    for model in (residual_w8a8(int32_bias=True), dynamic):
        with pytest.raises(BuildError) as caught:
            build_plan(model.SerializeToString(), BuildOptions(), api)
        held = [
            type(value).__name__
            for frame in frames_of(caught.value.__traceback__)
            for value in frame.f_locals.values()
            if type(value).__module__.startswith("tensorrt_rtx")
        ]
        assert held == []


def frames_of(trace: types.TracebackType | None) -> list[types.FrameType]:
    frames = []
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    return frames


def test_builds_one_after_the_other_do_not_share_a_log(api: TrtApi) -> None:
    refusal_of(residual_w8a8(int32_bias=True).SerializeToString(), api)
    log = build_plan(residual_w8a8().SerializeToString(), BuildOptions(), api).log
    assert not [line for line in log if "conv2.bias" in line]
