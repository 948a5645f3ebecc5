"""What is asked for is done, refused, or noted; nothing is dropped in silence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from engine_graphs import residual_float, residual_w8a8
from trt_members import FLAGS_10, REMOVED_IN_11, members_10, members_11

from fdda_deploy.engines import build_options
from fdda_deploy.engines.build_options import REPLACED_FLAGS, BuildOptions, settle
from fdda_deploy.engines.trt_api import TrtApi, gpu_present, load_api
from fdda_deploy.engines.trt_build import build_plan
from fdda_deploy.engines.trt_capabilities import capabilities_of
from fdda_deploy.errors import BuildError, ConfigError, MissingBackendError

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux x86-64")
no_gpu = pytest.mark.skipif(gpu_present(), reason="the claim is about a machine without a GPU")


@pytest.fixture(scope="module")
def rtx() -> TrtApi:
    return load_api("tensorrt_rtx")


def full(members: SimpleNamespace, version: str, monkeypatch: pytest.MonkeyPatch) -> TrtApi:
    """A full TensorRT of documented names, on a machine that has a GPU."""
    monkeypatch.setattr(build_options, "gpu_present", lambda: True)
    return TrtApi(members, "tensorrt", version, capabilities_of(members, "tensorrt"))


def test_flags_that_tensorrt_11_took_away_are_noted_with_what_does_their_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = full(members_11(), "11.4.1", monkeypatch)
    found = settle(BuildOptions(flags=("FP16", "TF32")), api)
    assert found.flags == ("TF32",)
    (note,) = found.notes
    assert note.startswith("T035: flag FP16: TensorRT 11.4.1 has none; types come from the graph")


def test_tensorrt_10_still_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    api = full(members_10(), "10.16.1", monkeypatch)
    assert settle(BuildOptions(flags=("FP16", "INT8")), api).flags == ("FP16", "INT8")


def test_every_flag_that_11_took_away_has_a_replacement() -> None:
    assert set(REPLACED_FLAGS) == set(REMOVED_IN_11)
    assert set(REPLACED_FLAGS) < set(FLAGS_10)


def test_a_flag_that_no_tensorrt_has_is_refused_with_the_near_one(rtx: TrtApi) -> None:
    with pytest.raises(ConfigError, match=r"flag STRIP_PLANS: .* Did you mean STRIP_PLAN\?"):
        settle(BuildOptions(flags=("STRIP_PLANS",)), rtx)


def test_full_tensorrt_takes_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    api = full(members_11(), "11.4.1", monkeypatch)
    options = BuildOptions(hardware="ampere-plus", version_compatible=True, strip=True, refit=True)
    found = settle(options, api)
    assert found.flags == ("VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT")
    assert found.hardware_level == "AMPERE_PLUS"
    assert found.notes == ()


def test_rtx_notes_what_it_does_otherwise_and_builds(rtx: TrtApi, tmp_path: Path) -> None:
    options = BuildOptions(hardware="ampere-plus", timing_cache=tmp_path / "timings")
    built = build_plan(residual_w8a8().SerializeToString(), options, rtx)
    hardware, timing = built.notes
    assert hardware.startswith("T035: --hardware-compatible ampere-plus: TensorRT-RTX ")
    assert "--sm" in hardware
    assert timing.startswith("T035: --timing-cache: TensorRT-RTX ")
    assert "runtime cache" in timing
    assert not (tmp_path / "timings").exists()


def test_rtx_refuses_plans_for_other_releases(rtx: TrtApi) -> None:
    with pytest.raises(ConfigError, match=r"--version-compatible: .* its own release only"):
        settle(BuildOptions(version_compatible=True), rtx)


@no_gpu
@pytest.mark.parametrize("option", ["strip", "refit"])
def test_without_a_gpu_rtx_refuses_plans_without_weights(rtx: TrtApi, option: str) -> None:
    with pytest.raises(MissingBackendError, match=rf"--{option}: .* the whole plan builds here"):
        settle(BuildOptions(**{option: True}), rtx)


@no_gpu
@pytest.mark.parametrize(
    ("able", "options", "words"),
    [
        ("refits_without_gpu", BuildOptions(strip=True), "loads compiled kernels on a GPU"),
        ("refits_without_gpu", BuildOptions((89,), refit=True), "loads compiled kernels on a GPU"),
        ("version_compatible", BuildOptions(version_compatible=True), "need the lean runtime"),
    ],
    ids=["stripped", "refittable for one GPU", "for other releases"],
)
def test_what_is_refused_up_front_is_what_the_builder_itself_would_refuse(
    rtx: TrtApi, able: str, options: BuildOptions, words: str
) -> None:
    capabilities = dataclasses.replace(rtx.capabilities, **{able: True})
    claimed = dataclasses.replace(rtx, capabilities=capabilities)
    with pytest.raises(BuildError, match=words):
        build_plan(residual_float().SerializeToString(), options, claimed)


def test_a_tensorrt_without_the_flag_refuses_to_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    members = members_10()
    api = full(members, "10.13.0", monkeypatch)
    few = dataclasses.replace(api.capabilities, flags=frozenset({"TF32"}))
    with pytest.raises(ConfigError, match=r"--strip: TensorRT 10\.13\.0 has no flag STRIP_PLAN"):
        settle(BuildOptions(strip=True), dataclasses.replace(api, capabilities=few))


def test_an_unknown_hardware_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="want ampere-plus or same-compute-capability"):
        BuildOptions(hardware="hopper")


def test_a_graph_of_one_batch_says_that_other_batches_do_not_apply(rtx: TrtApi) -> None:
    model = residual_w8a8(batch=4).SerializeToString()
    (note,) = build_plan(model, BuildOptions(max_batch=16), rtx).notes
    assert note.startswith("the graph fixes its batch at 4: batches 1 to 16 do not apply")
    assert build_plan(model, BuildOptions(), rtx).notes == ()
