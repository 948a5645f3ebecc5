"""Why a plan will not load, decided from its manifest and the machine alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from package_samples import fitting_machine, sample_manifest, sample_plan, tensorrt_plan

from fdda_deploy.engines.preflight import (
    MachineFacts,
    Verdict,
    facts_here,
    graph_verdict,
    plan_verdict,
)

ONLY_THE_OTHER = (
    "TensorRT-RTX 1.7.1.116 is not installed (TensorRT 10.13.2.6 cannot load it); install it: "
    "pip install 'tensorrt-rtx-cu13-libs==1.7.1.116' 'tensorrt-rtx-cu13-bindings==1.7.1.116'"
)


def verdict(plan: dict[str, Any] | None, **facts: Any) -> Verdict:
    return plan_verdict(sample_manifest(plan=plan), fitting_machine(**facts))


@pytest.mark.parametrize("plan", [sample_plan(), tensorrt_plan()], ids=["RTX", "TensorRT"])
def test_a_plan_loads_on_the_machine_it_was_built_for(plan: dict[str, Any]) -> None:
    found = verdict(plan)
    assert found.loads
    assert "plan fits what is installed, and NVIDIA L4" in found.reason


@pytest.mark.parametrize(
    ("plan", "facts", "says"),
    [
        (None, {}, "has no plan: build one here with build_on_target.py"),
        (
            tensorrt_plan(),
            {"platform": "win32-amd64"},
            "built on linux-x86_64 and this is win32-amd64",
        ),
        (sample_plan(), {"platform": "linux-aarch64"}, "this is linux-aarch64: build it again"),
        (
            sample_plan(),
            {"gpu": None, "compute_capability": None},
            "no NVIDIA GPU or driver is visible, and the TensorRT-RTX 1.7.1.116 plan needs one",
        ),
        (
            sample_plan(),
            {"versions": {"tensorrt": "10.13.2.6"}},
            ONLY_THE_OTHER,
        ),
        (
            tensorrt_plan(),
            {"versions": {}},
            "TensorRT 10.13.2.6 is not installed; install it: pip install 'tensorrt==10.13.2.6'",
        ),
        (
            sample_plan(),
            {"versions": {"tensorrt_rtx": "1.8.0.1"}},
            "built by TensorRT-RTX 1.7.1.116 and 1.8.0.1 is installed",
        ),
        (tensorrt_plan(), {"versions": {"tensorrt": "10.13.3"}}, "and 10.13.3 is installed"),
        (
            tensorrt_plan(flags=["VERSION_COMPATIBLE"]),
            {"versions": {"tensorrt": "10.12.0"}},
            "outside what VERSION_COMPATIBLE covers",
        ),
        (
            tensorrt_plan(flags=["VERSION_COMPATIBLE"], version="8.6.1"),
            {"versions": {"tensorrt": "11.0.0"}},
            "outside what VERSION_COMPATIBLE covers",
        ),
        (
            sample_plan(flags=["VERSION_COMPATIBLE"]),
            {"versions": {"tensorrt_rtx": "1.8.0.1"}},
            "and 1.8.0.1 is installed",
        ),
        (
            tensorrt_plan(),
            {"compute_capability": 90},
            "for compute capability 8.9 and NVIDIA L4 has 9.0: build it again here",
        ),
        (sample_plan(), {"compute_capability": 75}, "8.0, 8.6, 8.9, 12.0 and NVIDIA L4 has 7.5"),
        (
            tensorrt_plan(flags=["AMPERE_PLUS"]),
            {"compute_capability": 75},
            "NVIDIA L4 has 7.5",
        ),
        (tensorrt_plan(flags=["STRIP_PLAN"]), {}, "without its weights: refit it"),
        (sample_plan(), {"memory_library": None}, "pip install cuda-bindings"),
    ],
    ids=[
        "no plan",
        "another platform",
        "RTX on another processor",
        "no GPU",
        "another TensorRT only",
        "no TensorRT",
        "RTX of another release",
        "TensorRT of another patch",
        "older than a version-compatible plan",
        "two majors later",
        "RTX is never version-compatible",
        "another GPU",
        "older GPU than RTX builds for",
        "older than Ampere",
        "stripped",
        "no library for device memory",
    ],
)
def test_each_reason_is_said_in_one_line(
    plan: dict[str, Any] | None, facts: dict[str, Any], says: str
) -> None:
    found = verdict(plan, **facts)
    assert not found.loads
    assert says in found.reason
    assert "\n" not in found.reason


@pytest.mark.parametrize(
    ("plan", "facts"),
    [
        (sample_plan(), {"platform": "win32-amd64"}),
        (tensorrt_plan(flags=["VERSION_COMPATIBLE"]), {"versions": {"tensorrt": "10.16.1"}}),
        (tensorrt_plan(flags=["VERSION_COMPATIBLE"]), {"versions": {"tensorrt": "11.4.0"}}),
        (tensorrt_plan(version="10.13.0"), {"versions": {"tensorrt": "10.13"}}),
        (tensorrt_plan(flags=["AMPERE_PLUS"]), {"compute_capability": 120}),
        (tensorrt_plan(compute_capabilities=[]), {"compute_capability": 75}),
    ],
    ids=[
        "RTX on Windows",
        "later minor",
        "next major",
        "zeros left out",
        "Ampere and later",
        "GPU not recorded",
    ],
)
def test_what_nvidia_documents_as_compatible_loads(
    plan: dict[str, Any], facts: dict[str, Any]
) -> None:
    assert verdict(plan, **facts).loads


def test_a_graph_needs_onnx_runtime_alone() -> None:
    manifest = sample_manifest()
    assert graph_verdict(manifest, fitting_machine(gpu=None)).loads
    without = graph_verdict(manifest, fitting_machine(onnxruntime=None))
    assert (without.loads, without.reason) == (
        False,
        "ONNX Runtime is not installed: pip install onnxruntime",
    )
    assert not graph_verdict(sample_manifest(graph=None), fitting_machine()).loads


def test_the_facts_of_this_machine_are_all_known() -> None:
    facts = facts_here()
    assert isinstance(facts, MachineFacts)
    assert facts.onnxruntime
    assert (facts.gpu is None) == (facts.compute_capability is None)
    assert set(facts.versions) <= {"tensorrt", "tensorrt_rtx"}


VERSIONS = st.from_regex(r"\A[0-9]{1,3}(\.[0-9]{1,3}){0,4}\Z")


@given(
    flavour=st.sampled_from(["tensorrt", "tensorrt_rtx"]),
    built=VERSIONS,
    here=st.dictionaries(st.sampled_from(["tensorrt", "tensorrt_rtx"]), VERSIONS),
    flags=st.lists(st.sampled_from(["VERSION_COMPATIBLE", "AMPERE_PLUS", "STRIP_PLAN", "REFIT"])),
    numbers=st.lists(st.integers(50, 130), max_size=4),
    capability=st.none() | st.integers(50, 130),
)
def test_every_plan_gets_an_answer_of_one_line(
    flavour: str,
    built: str,
    here: dict[str, str],
    flags: list[str],
    numbers: list[int],
    capability: int | None,
) -> None:
    plan = sample_plan(flavour=flavour, version=built, flags=flags, compute_capabilities=numbers)
    gpu = None if capability is None else "GPU"
    found = verdict(plan, versions=here, gpu=gpu, compute_capability=capability)
    assert found.reason
    assert "\n" not in found.reason
    if found.loads:
        assert flavour in here
        assert gpu
