"""What each TensorRT can do is read off member names, never off a version or a flag's number."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from trt_members import REMOVED_IN_11, members_10, members_11

from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_capabilities import capabilities_of, targets_in_order

ROOT = Path(__file__).parents[2]
MAY_COMPARE_VERSIONS = {"engines/trt_api.py"}
ORDERINGS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def test_tensorrt_10_calibrates_and_must_be_asked_for_strong_types() -> None:
    found = capabilities_of(members_10(), "tensorrt")
    assert found.calibrators == {"entropy2", "minmax"}
    assert found.has_calibrator
    assert found.has_strongly_typed_flag
    assert found.has_explicit_batch_flag
    assert found.inspector_io_field == "Bindings"
    assert {"FP16", "INT8", "STRIP_PLAN"} <= found.flags
    assert not found.builds_without_gpu
    assert not found.compute_capabilities


def test_tensorrt_11_has_neither_calibrators_nor_precision_flags() -> None:
    found = capabilities_of(members_11(), "tensorrt")
    assert not found.has_calibrator
    assert found.calibrators == frozenset()
    assert found.inspector_io_field == "I/O Tensors"
    assert not found.has_explicit_batch_flag
    assert found.flags.isdisjoint(REMOVED_IN_11)


@pytest.mark.parametrize("members", [members_10, members_11], ids=["10", "11"])
def test_both_time_kernels_and_make_plans_for_other_gpus_and_releases(members: object) -> None:
    found = capabilities_of(members(), "tensorrt")  # type: ignore[operator]
    assert found.has_timing_cache
    assert found.version_compatible
    assert found.can_stream_weights
    assert found.hardware_levels == {"AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"}
    assert found.runtime_platforms == {"SAME_AS_BUILD", "WINDOWS_AMD64"}


def test_bindings_without_any_of_the_names_are_described_without_error() -> None:
    found = capabilities_of(object(), "tensorrt")
    assert found.flags == frozenset()
    assert not found.has_timing_cache
    assert not found.version_compatible


def test_installed_rtx_builds_anywhere_and_says_what_it_lacks() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="has wheels for Linux x86-64 only")
    api = load_api("tensorrt_rtx")
    found = api.capabilities
    assert found.builds_without_gpu
    assert found.has_runtime_cache
    assert {75, 80, 86, 89, 120} <= found.compute_capabilities
    assert set(targets_in_order(api.module)) == found.compute_capabilities
    assert found.flags.isdisjoint(REMOVED_IN_11[:-2])
    for lacking in (found.has_timing_cache, found.version_compatible, found.has_calibrator):
        assert not lacking
    assert found.hardware_levels == frozenset()


def test_no_other_file_orders_versions() -> None:
    guilty = {
        path.relative_to(ROOT).as_posix()
        for folder in ("engines", "pipeline", "calib_cache", "src/fdda_deploy/cli")
        for path in (ROOT / folder).rglob("*.py")
        if _orders_versions(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert guilty <= MAY_COMPARE_VERSIONS


def _orders_versions(tree: ast.AST) -> bool:
    """Whether a library's version or release is compared with < or >."""
    return any(
        isinstance(node, ast.Compare)
        and any(isinstance(operator, ORDERINGS) for operator in node.ops)
        and any(word in ast.unparse(node).lower() for word in ("__version__", "release", "api."))
        for node in ast.walk(tree)
    )
