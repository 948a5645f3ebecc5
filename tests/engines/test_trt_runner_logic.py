"""What surrounds TensorRT on a GPU, on a simulated one: buffers, graphs, parts of time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_gpu import PLAN, SimulatedMemory, simulated_api

from fdda_deploy.engines import trt_run
from fdda_deploy.engines.bench import BenchOptions, bench
from fdda_deploy.engines.layer_times import time_layers
from fdda_deploy.engines.runner import RunParts
from fdda_deploy.engines.trt_run import TrtRunner
from fdda_deploy.errors import EngineError


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="its logger is used")
    monkeypatch.setattr(trt_run, "gpu_present", lambda: True)


@pytest.fixture
def memory() -> SimulatedMemory:
    return SimulatedMemory()


def runner_of(memory: SimulatedMemory, **options: bool) -> TrtRunner:
    return TrtRunner(PLAN, simulated_api(memory), open_memory=lambda: memory, **options)


def batch(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 2, 3)).astype(np.float32)}


@pytest.mark.parametrize("cuda_graph", [False, True], ids=["enqueue", "graph"])
@pytest.mark.parametrize("spin_wait", [False, True], ids=["sleep", "spin"])
def test_any_order_of_batches_gives_each_its_own_result(cuda_graph: bool, spin_wait: bool) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.integers(1, 8), min_size=1, max_size=6))
    def claim(counts: list[int]) -> None:
        memory = SimulatedMemory()
        with runner_of(memory, cuda_graph=cuda_graph, spin_wait=spin_wait) as runner:
            for seed, count in enumerate(counts):
                feed = batch(count, seed)
                np.testing.assert_array_equal(runner.infer(feed)["y"], 2 * feed["x"])
        assert memory.closed

    claim()


def test_graph_is_captured_once_per_shape_and_again_for_a_new_one(memory: SimulatedMemory) -> None:
    with runner_of(memory, cuda_graph=True) as runner:
        for count in (2, 2, 2, 4, 4, 2):
            runner.infer(batch(count))
        assert memory.log.count("capture") == 3
        assert memory.log.count("free graph") == 2
        assert memory.log.count("launch") == 6
        assert len(memory.graphs) == 1


def test_without_a_graph_nothing_is_captured(memory: SimulatedMemory) -> None:
    with runner_of(memory) as runner:
        runner.infer(batch(2))
    assert "capture" not in memory.log
    assert memory.log.count("execute") == 1


def test_buffers_grow_and_never_shrink(memory: SimulatedMemory) -> None:
    with runner_of(memory) as runner:
        for count in (2, 8, 1, 8):
            runner.infer(batch(count))
        assert [entry for entry in memory.log if "allocate" in entry] == (
            ["allocate 48"] * 2 + ["allocate 192"] * 2
        )
        assert len(memory.held) == len(memory.pages) == 2


def test_outputs_are_the_caller_s_own(memory: SimulatedMemory) -> None:
    with runner_of(memory) as runner:
        first = runner.infer(batch(2, 0))["y"]
        kept = first.copy()
        runner.infer(batch(2, 1))
        np.testing.assert_array_equal(first, kept)


def test_input_that_is_not_contiguous_is_read_in_its_own_order(memory: SimulatedMemory) -> None:
    x = batch(6)["x"][::3]
    with runner_of(memory) as runner:
        np.testing.assert_array_equal(runner.infer({"x": x})["y"], 2 * x)


def test_parts_of_a_run_are_told_apart(memory: SimulatedMemory) -> None:
    with runner_of(memory) as runner:
        assert runner.last_parts == RunParts(0, 0, 0, 0)
        runner.infer(batch(2))
        parts = runner.last_parts
        assert (parts.h2d_ms, parts.compute_ms, parts.d2h_ms) == (2, 5, 3)
        assert parts.enqueue_ms > 0


def test_run_again_copies_nothing(memory: SimulatedMemory) -> None:
    with runner_of(memory) as runner:
        runner.infer(batch(2))
        before = memory.clock_ms
        runner.rerun()
        assert memory.clock_ms - before == 5
        assert (runner.last_parts.h2d_ms, runner.last_parts.d2h_ms) == (0, 0)


def test_layers_are_timed_and_joined_to_their_precision(memory: SimulatedMemory) -> None:
    with runner_of(memory) as runner:
        (row,) = time_layers(runner, batch(2), iterations=4)
    assert (row.name, row.mean_ms, row.percent, row.precision) == ("double", 5.0, 100.0, "FP32")
    assert memory.log.count("execute") == 5


def test_nothing_to_run_again_is_told(memory: SimulatedMemory) -> None:
    with runner_of(memory) as runner, pytest.raises(EngineError, match="Call infer first"):
        runner.rerun()


def test_spinning_polls_and_sleeping_waits(memory: SimulatedMemory) -> None:
    with runner_of(memory, spin_wait=True) as runner:
        runner.infer(batch(1))
    assert "poll" in memory.log
    assert "wait" not in memory.log


@pytest.mark.parametrize("cuda_graph", [False, True], ids=["enqueue", "graph"])
def test_batch_outside_the_profile_leaves_the_runner_usable(
    memory: SimulatedMemory, cuda_graph: bool
) -> None:
    feed = batch(3)
    with runner_of(memory, cuda_graph=cuda_graph) as runner:
        runner.infer(feed)
        with pytest.raises(
            EngineError, match=r"\(9, 2, 3\) is outside .*\(1, 2, 3\) to \(8, 2, 3\)"
        ):
            runner.infer(batch(9))
        with pytest.raises(EngineError, match="Call infer first"):
            runner.rerun()
        np.testing.assert_array_equal(runner.infer(feed)["y"], 2 * feed["x"])


def test_failed_run_is_an_engine_error(memory: SimulatedMemory) -> None:
    with runner_of(memory) as runner:
        runner._open._context.fails = True
        with pytest.raises(EngineError, match=r"TensorRT-RTX 9\.9\.9 failed while it ran"):
            runner.infer(batch(1))


def test_plan_that_does_not_load_gives_everything_back(memory: SimulatedMemory) -> None:
    runner = TrtRunner(b"other", simulated_api(memory), open_memory=lambda: memory)
    with pytest.raises(EngineError, match="cannot load the plan"):
        runner.__enter__()
    assert memory.closed


@pytest.fixture(params=[True, False], ids=["transfers", "no transfers"])
def transfers(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_bench_reports_parts_and_conditions(memory: SimulatedMemory, transfers: bool) -> None:
    options = BenchOptions(warmup_ms=0, min_seconds=0, transfers=transfers)
    with runner_of(memory, cuda_graph=True) as runner:
        record = bench(runner, batch(4), options=options)
    assert (record.runs_on, record.cuda_graph, record.spin_wait) == ("GPU", True, False)
    assert record.transfers is transfers
    assert record.gpu_compute is not None
    assert record.h2d is not None
    assert record.gpu_compute.mean_ms == 5
    assert record.h2d.mean_ms == (2 if transfers else 0)
    assert record.latency.mean_ms == (10 if transfers else 5)
    assert not record.latency.unstable
