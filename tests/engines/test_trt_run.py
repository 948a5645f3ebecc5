"""Running a plan: on a GPU it agrees with ONNX Runtime; without one the error says what works."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

import numpy as np
import pytest
from engine_graphs import images, residual_w8a8

from fdda_deploy.engines import cuda_bindings_memory
from fdda_deploy.engines.bench import BenchOptions, bench
from fdda_deploy.engines.compare import compare
from fdda_deploy.engines.cuda_bindings_memory import CudaBindingsMemory
from fdda_deploy.engines.device_memory import (
    device_memory_library,
    open_device_memory,
)
from fdda_deploy.engines.gpu import gpu_present
from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.engines.pycuda_memory import PyCudaMemory
from fdda_deploy.engines.trt_api import TrtApi, load_api
from fdda_deploy.engines.trt_build import BuildOptions, build_plan
from fdda_deploy.engines.trt_run import TrtRunner
from fdda_deploy.errors import EngineError, MissingBackendError

without_gpu = pytest.mark.skipif(gpu_present(), reason="the claim is about a machine without a GPU")
needs_gpu = pytest.mark.skipif(not gpu_present(), reason="no NVIDIA GPU is visible")


@pytest.fixture(scope="module")
def api() -> TrtApi:
    pytest.importorskip("tensorrt_rtx_bindings", reason="has wheels for Linux x86-64 only")
    return load_api("tensorrt_rtx")


@pytest.fixture(scope="module")
def plan(api: TrtApi) -> bytes:
    options = BuildOptions(max_batch=16)
    return build_plan(residual_w8a8().SerializeToString(), options, api).plan


@without_gpu
def test_running_without_a_gpu_says_what_still_works(api: TrtApi, plan: bytes) -> None:
    runner = TrtRunner(plan, api)
    with pytest.raises(MissingBackendError, match="needs an NVIDIA GPU") as caught:
        runner.__enter__()
    assert "--backend ort-cpu" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_closed_runner_says_so(api: TrtApi, plan: bytes) -> None:
    with pytest.raises(EngineError, match="inside its with block"):
        TrtRunner(plan, api).infer({"input": images(1)})


def test_every_cuda_function_that_is_named_exists() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    source = inspect.getsource(cuda_bindings_memory)
    named = set(re.findall(r"\bcuda[A-Z]\w+", source))
    assert len(named) > 15
    assert [name for name in named if not _there(runtime, name)] == []


def _there(runtime: Any, name: str) -> bool:
    enums = (runtime, runtime.cudaMemcpyKind, runtime.cudaStreamCaptureMode, runtime.cudaError_t)
    return any(hasattr(place, name) for place in enums)


def test_pycuda_says_that_it_captures_no_graph() -> None:
    memory = PyCudaMemory.__new__(PyCudaMemory)  # without the driver that __init__ starts
    with pytest.raises(EngineError, match=r"captures no CUDA graph\. Install the other library"):
        memory.capture(lambda: None)


@without_gpu
def test_cuda_call_that_fails_is_named() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    with pytest.raises(EngineError, match=r"cudaStreamCreate failed: cudaError\w+ \(\d+\)"):
        CudaBindingsMemory()


def test_missing_memory_library_names_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("cuda", "cuda.bindings", "pycuda"):
        monkeypatch.setitem(sys.modules, package, None)
    assert device_memory_library() is None
    with pytest.raises(MissingBackendError, match="pip install cuda-bindings"):
        open_device_memory()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("count", [1, 5, 16])
def test_plan_agrees_with_onnx_runtime(api: TrtApi, plan: bytes, count: int) -> None:
    feed = {"input": images(count)}
    reference = OrtRunner(residual_w8a8().SerializeToString())
    with reference as a, TrtRunner(plan, api) as b:
        assert (a.input_names, a.output_names) == (b.input_names, b.output_names)
        assert compare(a, b, feed)["logits"].relative_l2 < 1e-2


@pytest.mark.gpu
@needs_gpu
def test_batch_outside_the_profile_is_refused_with_its_range(api: TrtApi, plan: bytes) -> None:
    with (
        TrtRunner(plan, api) as runner,
        pytest.raises(EngineError, match=r"outside the plan's .*Run smaller batches"),
    ):
        runner.infer({"input": images(17)})


@pytest.mark.gpu
@needs_gpu
def test_gpu_compute_is_timed_and_shorter_than_the_host_latency(api: TrtApi, plan: bytes) -> None:
    options = BenchOptions(warmup_ms=20, min_seconds=0.2)
    with TrtRunner(plan, api) as runner:
        record = bench(runner, {"input": images(8)}, options=options)
    assert record.runs_on == "GPU"
    assert record.gpu_compute is not None
    assert 0 < record.gpu_compute.mean_ms < record.latency.mean_ms


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("spin_wait", [False, True])
def test_cuda_graph_gives_the_same_values_for_every_shape(
    api: TrtApi, plan: bytes, spin_wait: bool
) -> None:
    with (
        TrtRunner(plan, api) as a,
        TrtRunner(plan, api, cuda_graph=True, spin_wait=spin_wait) as b,
    ):
        for count in (1, 8, 8, 3, 1):
            feed = {"input": images(count, seed=count)}
            np.testing.assert_array_equal(a.infer(feed)["logits"], b.infer(feed)["logits"])


@pytest.mark.gpu
@needs_gpu
def test_damaged_plan_is_refused(api: TrtApi, plan: bytes) -> None:
    with pytest.raises(EngineError, match="cannot load the plan"):
        TrtRunner(plan[:1000], api).__enter__()


@pytest.mark.gpu
@needs_gpu
def test_device_memory_returns_what_was_copied_in() -> None:
    memory = open_device_memory()
    sent, received = np.arange(1000, dtype=np.float32), np.zeros(1000, np.float32)
    address = memory.allocate(sent.nbytes)
    memory.copy_to_device(address, sent)
    memory.copy_to_host(received, address)
    memory.synchronize()
    memory.close()
    np.testing.assert_array_equal(sent, received)
