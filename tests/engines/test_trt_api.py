"""Capabilities are read off a module; a missing TensorRT is an error with an install line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from fdda_deploy.engines.trt_api import (
    LogRecord,
    available_apis,
    collect_log,
    errors_in,
    load_api,
)
from fdda_deploy.errors import MissingBackendError


@pytest.fixture
def fresh_load() -> Iterator[None]:
    """Loads are cached for the process; this test asks anew."""
    load_api.cache_clear()
    yield
    load_api.cache_clear()


@pytest.fixture
def _rtx() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="has wheels for Linux x86-64 only")


@pytest.mark.usefixtures("_rtx")
def test_installed_rtx_builds_without_a_gpu_and_knows_its_targets() -> None:
    api = load_api("tensorrt_rtx")
    assert api.title == f"TensorRT-RTX {api.module.__version__}"
    assert api.capabilities.builds_without_gpu
    assert not api.capabilities.has_calibrator
    assert {75, 86, 89, 120} <= api.capabilities.compute_capabilities
    assert {"TF32", "REFIT"} <= api.capabilities.flags
    assert api in available_apis()


@pytest.mark.usefixtures("fresh_load")
@pytest.mark.parametrize(
    ("flavour", "package", "install"),
    [
        ("tensorrt", "tensorrt", "pip install 'tensorrt>=10.13,<12' cuda-bindings"),
        (
            "tensorrt_rtx",
            "tensorrt_rtx_libs",
            "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
        ),
    ],
)
def test_missing_tensorrt_names_its_install_line(
    monkeypatch: pytest.MonkeyPatch, flavour: str, package: str, install: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingBackendError, match="cannot be imported") as caught:
        load_api(flavour)  # type: ignore[arg-type]  # the grid's strings are the two flavours
    assert install in str(caught.value)
    assert flavour not in [api.flavour for api in available_apis()]


@pytest.mark.usefixtures("fresh_load")
def test_tensorrt_before_10_13_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.9.0.34"))
    with pytest.raises(MissingBackendError, match=r"TensorRT 10\.9\.0\.34 is too old: want 10\.13"):
        load_api("tensorrt")


@pytest.mark.usefixtures("_rtx")
def test_logger_outlives_its_log_and_starts_each_one_empty() -> None:
    api = load_api("tensorrt_rtx")
    with collect_log(api) as (first_logger, first):
        first_logger.log(api.module.ILogger.Severity.WARNING, "careful")
        first_logger.log(api.module.ILogger.Severity.VERBOSE, "chatter")
    with collect_log(api) as (second_logger, second):
        second_logger.log(api.module.ILogger.Severity.ERROR, "broken")
    assert first == [LogRecord("WARNING", "careful")]
    assert second == [LogRecord("ERROR", "broken")]
    assert first_logger is second_logger


def test_errors_of_a_log_are_one_line_without_driver_noise() -> None:
    records = [
        LogRecord("WARNING", "slow"),
        LogRecord("ERROR", "bad type\nIn checkType at /src/node.cpp:4"),
        LogRecord("ERROR", "checkMacros (cudaError 35: driver)"),
        LogRecord("INTERNAL_ERROR", "gave up."),
    ]
    assert errors_in(records) == "bad type gave up"


def test_hidden_gpu_is_no_gpu() -> None:
    code = "from fdda_deploy.engines.gpu import gpu_name, gpu_present as g; print(g(), gpu_name())"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["False", "None"]
