"""OrtRunner's providers and options: what is missing is named, and no option changes a value."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from engine_graphs import images, residual_w8a8

from fdda_deploy.engines.gpu import gpu_present
from fdda_deploy.engines.ort_run import Optimizations, OrtRunner
from fdda_deploy.errors import MissingBackendError


@pytest.mark.skipif(gpu_present(), reason="the claim is about a machine without a GPU")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_gpu_provider_without_a_gpu_names_the_install_line(provider: str) -> None:
    with pytest.raises(MissingBackendError, match="pip install 'onnxruntime-gpu"):
        OrtRunner(residual_w8a8().SerializeToString(), provider=provider).__enter__()


def test_missing_provider_is_told_with_those_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    wanted = "built without CUDAExecutionProvider; it has CPUExecutionProvider. Replace it: pip"
    with pytest.raises(MissingBackendError, match=wanted):
        OrtRunner(residual_w8a8().SerializeToString(), provider="cuda").__enter__()


def test_bound_inputs_and_outputs_change_no_value() -> None:
    model, feed = residual_w8a8().SerializeToString(), {"input": images(6)[::2]}
    with OrtRunner(model) as plain, OrtRunner(model, io_binding=True) as bound:
        wanted, got = plain.infer(feed)["logits"], bound.infer(feed)["logits"]
        np.testing.assert_array_equal(wanted, got)
        bound.infer({"input": images(3, seed=9)})
        np.testing.assert_array_equal(wanted, got, err_msg="the arrays are the caller's own")


@pytest.mark.parametrize("level", ["none", "basic", "extended", "all"])
def test_every_level_of_optimization_gives_the_same_network(level: Optimizations) -> None:
    model, feed = residual_w8a8().SerializeToString(), {"input": images(3)}
    with OrtRunner(model) as plain, OrtRunner(model, optimizations=level) as runner:
        assert f"optimizations {level}" in runner.describe()
        wanted, got = plain.infer(feed)["logits"], runner.infer(feed)["logits"]
    np.testing.assert_allclose(got, wanted, rtol=0.05, atol=0.05 * np.abs(wanted).max())


def test_missing_onnx_runtime_names_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingBackendError, match="Install it: pip install onnxruntime"):
        OrtRunner(b"").__enter__()


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_present(), reason="no NVIDIA GPU is visible")
def test_cuda_provider_agrees_with_the_cpu() -> None:
    model, feed = residual_w8a8().SerializeToString(), {"input": images(4)}
    with OrtRunner(model) as cpu, OrtRunner(model, provider="cuda") as cuda:
        assert cuda.runs_on == "GPU"
        logits = cuda.infer(feed)["logits"]
        np.testing.assert_allclose(logits, cpu.infer(feed)["logits"], rtol=1e-3, atol=1e-3)
