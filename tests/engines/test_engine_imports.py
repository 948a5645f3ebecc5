"""Importing the engines loads no engine: `--help` stays quick, and tests run anywhere."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

from fdda_deploy import engines

MODULES = [f"fdda_deploy.engines.{info.name}" for info in pkgutil.iter_modules(engines.__path__)]
HEAVY = {
    "torch",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx_libs",
    "tensorrt_rtx_bindings",
    "pycuda",
    "cuda",
    "scipy",
    "matplotlib",
}


def modules_after(code: str) -> set[str]:
    code = f"{code}\nimport sys; print(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stderr == ""
    return {name.partition(".")[0] for name in answer.stdout.split()}


def test_engine_modules_import_no_engine() -> None:
    assert len(MODULES) >= 11
    assert modules_after(f"import {', '.join(MODULES)}") & HEAVY == set()


def test_asking_for_a_gpu_imports_no_engine() -> None:
    code = "from fdda_deploy.engines.gpu import gpu_present; gpu_present()"
    assert modules_after(code) & HEAVY == set()


def test_building_a_plan_imports_neither_torch_nor_onnx_runtime() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="has wheels for Linux x86-64 only")
    code = "from fdda_deploy.engines.trt_api import load_api; load_api('tensorrt_rtx')"
    loaded = modules_after(code) & HEAVY
    assert loaded == {"tensorrt_rtx_libs", "tensorrt_rtx_bindings"}
