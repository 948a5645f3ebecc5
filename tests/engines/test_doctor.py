"""What works here, what would mend the rest, and which backend a build takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from fdda_deploy.config.engine import TARGET_OF_BACKEND
from fdda_deploy.engines.doctor import backend_reports, choose_backend, flavour_of, target_of
from fdda_deploy.engines.gpu import gpu_present
from fdda_deploy.engines.trt_api import available_apis, load_api
from fdda_deploy.errors import ConfigError, MissingBackendError

without_gpu = pytest.mark.skipif(gpu_present(), reason="the claim is about a machine without a GPU")


@pytest.fixture(autouse=True)
def _fresh_load() -> Iterator[None]:
    load_api.cache_clear()
    yield
    load_api.cache_clear()


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


def test_every_backend_is_reported_and_what_is_missing_has_an_install_line() -> None:
    reports = backend_reports()
    assert [report.name for report in reports] == [
        "TensorRT",
        "TensorRT-RTX",
        "ONNX Runtime CPU",
        "ONNX Runtime CUDA",
    ]
    for report in reports:
        assert report.detail
        assert "\n" not in report.detail
        if report.version is None:
            assert report.install is not None
            assert report.install.startswith("pip install ")
            assert not report.can_run


def test_onnx_runtime_runs_and_rtx_builds_where_they_are_installed() -> None:
    reports = {report.name: report for report in backend_reports()}
    assert reports["ONNX Runtime CPU"].can_run
    assert reports["TensorRT-RTX"].can_build == (
        "tensorrt_rtx" in {a.flavour for a in available_apis()}
    )


@without_gpu
def test_nothing_claims_to_run_on_a_gpu_that_is_not_there() -> None:
    reports = {report.name: report for report in backend_reports()}
    for name in ("TensorRT", "TensorRT-RTX", "ONNX Runtime CUDA"):
        assert not reports[name].can_run


def test_reports_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "tensorrt", "tensorrt_rtx_libs", "onnxruntime")
    for report in backend_reports():
        assert report.version is None
        assert not report.can_build
        assert "cannot be imported" in report.detail
        assert "pip" not in report.detail


@without_gpu
def test_auto_takes_rtx_without_a_gpu_and_says_why() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="has wheels for Linux x86-64 only")
    choice = choose_backend("auto")
    assert choice.backend == "rtx"
    assert "builds on the CPU" in choice.reason


def test_auto_falls_back_to_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "tensorrt", "tensorrt_rtx_libs")
    choice = choose_backend("auto")
    assert choice.backend == "ort-cpu"
    assert "TensorRT is not installed, TensorRT-RTX is not installed" in choice.reason


def test_auto_without_any_backend_names_an_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "tensorrt", "tensorrt_rtx_libs", "onnxruntime")
    with pytest.raises(MissingBackendError, match="pip install onnxruntime"):
        choose_backend("auto")


@pytest.mark.parametrize(
    ("requested", "package", "install"),
    [
        ("tensorrt", "tensorrt", "pip install 'tensorrt>=10.13,<12'"),
        ("rtx", "tensorrt_rtx_libs", "pip install tensorrt-rtx-cu13-libs"),
        ("ort-cpu", "onnxruntime", "pip install onnxruntime"),
    ],
)
def test_backend_that_was_asked_for_and_is_missing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, requested: str, package: str, install: str
) -> None:
    hide(monkeypatch, package)
    with pytest.raises(MissingBackendError) as caught:
        choose_backend(requested)
    assert install in str(caught.value)


def test_backend_that_was_asked_for_is_taken() -> None:
    assert choose_backend("ort-cpu").backend == "ort-cpu"
    assert choose_backend("auto", "ort-cpu").backend == "ort-cpu"


@pytest.mark.parametrize("backend", ["rtx", "tensorrt"])
def test_graph_placed_for_onnx_runtime_is_not_given_to_tensorrt(backend: str) -> None:
    wanted = rf"--target ort-cpu with --backend {backend}: .*T003, T004, T015.*Leave --backend out"
    with pytest.raises(ConfigError, match=wanted):
        choose_backend(backend, "ort-cpu")


def test_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="--backend tvm: want auto, tensorrt, rtx, ort-cpu"):
        choose_backend("tvm")


def test_each_backend_has_its_placement_table_and_its_flavour() -> None:
    assert {name: target_of(name) for name in TARGET_OF_BACKEND} == {
        "tensorrt": "trt",
        "rtx": "rtx",
        "ort-cpu": "ort-cpu",
    }
    assert (flavour_of("tensorrt"), flavour_of("rtx")) == ("tensorrt", "tensorrt_rtx")
    with pytest.raises(ConfigError, match="--backend ort-cpu builds no plan"):
        flavour_of("ort-cpu")
