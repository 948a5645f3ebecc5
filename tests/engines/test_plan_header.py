"""The first bytes of a plan say whose it is, of which release, whether whole, and for whom."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from engine_graphs import residual_float
from hypothesis import given, settings
from hypothesis import strategies as st
from trt_members import members_11

from fdda_deploy.engines.build_options import BuildOptions
from fdda_deploy.engines.plan_header import load_plan, read_header, require_plan, targets_of
from fdda_deploy.engines.trt_api import TrtApi, load_api
from fdda_deploy.engines.trt_build import build_plan
from fdda_deploy.engines.trt_capabilities import capabilities_of
from fdda_deploy.errors import EngineError

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux x86-64")
FULL_PLAN = b"ftrt" + bytes(20) + bytes([10, 13, 2, 6]) + bytes(36)


@pytest.fixture(scope="module")
def api() -> TrtApi:
    return load_api("tensorrt_rtx")


@pytest.fixture(scope="module")
def plan(api: TrtApi) -> bytes:
    return build_plan(residual_float().SerializeToString(), BuildOptions((86, 89)), api).plan


def refusal(plan: bytes, api: TrtApi, compute_capability: int | None = None) -> str:
    with pytest.raises(EngineError) as caught:
        require_plan(plan, api, compute_capability)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_fresh_plan_says_who_built_it_for_whom_and_how_long_it_is(
    api: TrtApi, plan: bytes
) -> None:
    header = require_plan(plan, api, 89)
    assert header.release == f"TensorRT-RTX {'.'.join(api.version.split('.')[:3])}"
    assert header.num_bytes == len(plan)
    assert targets_of(header, api) == {86, 89}


@pytest.mark.parametrize("target", [80, 86, 89, 120, 121])
def test_each_target_has_its_own_bit(api: TrtApi, target: int) -> None:
    built = build_plan(residual_float().SerializeToString(), BuildOptions((target,)), api).plan
    assert targets_of(read_header(built), api) == {target}


def test_a_portable_plan_runs_on_sm80_and_later(api: TrtApi) -> None:
    built = build_plan(residual_float().SerializeToString(), BuildOptions(), api).plan
    assert targets_of(read_header(built), api) == api.capabilities.compute_capabilities - {75}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes that begin with nothing"),
        (b"hello world", "11 bytes that begin with 68 65 6c 6c"),
        (b"PK\x03\x04" + bytes(100), "a zip archive"),
        (b"\x08\x0a\x12", "an ONNX model, perhaps: build it first"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
    ],
    ids=["empty", "text", "checkpoint", "onnx", "git lfs"],
)
def test_what_is_no_plan_is_named_for_what_it_looks_like(
    api: TrtApi, data: bytes, words: str
) -> None:
    message = refusal(data, api)
    assert message.startswith("the plan is no TensorRT plan: ")
    assert words in message


def test_a_cut_plan_says_how_much_is_missing(api: TrtApi, plan: bytes) -> None:
    assert f"cut short: 1,000 bytes of {len(plan):,}" in refusal(plan[:1000], api)
    assert "cut short: 40 bytes, and the header alone has 64" in refusal(plan[:40], api)
    assert "longer than it says" in refusal(plan + b"x", api)


def test_a_plan_of_another_release_names_both(api: TrtApi, plan: bytes) -> None:
    older = plan[:25] + bytes([plan[25] - 1]) + plan[26:]
    message = refusal(older, api)
    assert "was built by TensorRT-RTX 1.6.1, and this is TensorRT-RTX 1.7.1" in message
    assert message.endswith("Build it again here, or install that release.")


def test_a_plan_for_other_gpus_names_them_and_this_one(api: TrtApi, plan: bytes) -> None:
    message = refusal(plan, api, 120)
    assert "was built for SM86, SM89, and this GPU is SM120" in message
    assert "--sm 120" in message


def test_plans_of_the_other_tensorrt_are_told_apart(api: TrtApi, plan: bytes) -> None:
    assert "is of TensorRT 10.13.2, and this is TensorRT-RTX" in refusal(FULL_PLAN, api)
    members = members_11()
    full = TrtApi(members, "tensorrt", "11.4.1", capabilities_of(members, "tensorrt"))
    assert "is of TensorRT-RTX 1.7.1, and this is TensorRT 11.4.1" in refusal(plan, full)


def test_full_tensorrt_refuses_another_major_release_and_judges_minor_ones_itself() -> None:
    members = members_11()
    full = TrtApi(members, "tensorrt", "11.4.1", capabilities_of(members, "tensorrt"))
    assert "was built by TensorRT 10.13.2" in refusal(FULL_PLAN, full)
    same_major = dataclasses.replace(full, version="10.16.1")
    assert require_plan(FULL_PLAN, same_major, 90).version == (10, 13, 2)


def test_a_plan_file_that_is_not_there_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"missing\.plan: cannot be read .*fdda-deploy engine"):
        load_plan(tmp_path / "missing.plan")
    (tmp_path / "a.plan").write_bytes(FULL_PLAN)
    assert load_plan(tmp_path / "a.plan") == FULL_PLAN


@pytest.mark.fuzz
@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=100), st.binary(max_size=100).map(lambda b: b"vtrt" + b)))
def test_any_bytes_are_a_header_or_an_engine_error(api: TrtApi, data: bytes) -> None:
    try:
        header = require_plan(data, api, 89)
    except EngineError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert header.num_bytes == len(data)
