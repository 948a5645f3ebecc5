"""Percentiles follow trtexec's rule; a bench says what it measured, and stops when told to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from engine_graphs import images, residual_w8a8
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.engines.bench import bench, percentile, summarize
from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.errors import ConfigError

samples = st.lists(st.floats(0.001, 1e4), min_size=1, max_size=400)
percents = st.integers(1, 99)


@given(values=samples, percent=percents)
def test_percentile_is_the_sample_at_trtexec_s_index(values: list[float], percent: int) -> None:
    ascending, count = sorted(values), len(values)
    excluded = math.floor((1 - Fraction(percent, 100)) * count)
    assert percentile(ascending, percent) == ascending[max(count - 1 - excluded, 0)]


@given(values=samples, percent=percents)
def test_at_least_that_share_of_samples_is_at_or_below(values: list[float], percent: int) -> None:
    found = percentile(sorted(values), percent)
    assert sum(value <= found for value in values) * 100 >= percent * len(values)


@given(values=samples)
def test_summary_is_ordered_and_ignores_the_order_of_samples(values: list[float]) -> None:
    found = summarize(values)
    ladder = [found.min_ms, found.p90_ms, found.p95_ms, found.p99_ms, found.max_ms]
    assert ladder == sorted(ladder)
    assert found.min_ms <= found.median_ms <= found.max_ms
    assert found == summarize(sorted(values, reverse=True))


@given(values=samples, exponent=st.integers(-8, 8))
def test_summary_scales_with_its_unit_and_the_variation_does_not(
    values: list[float], exponent: int
) -> None:
    factor = 2.0**exponent  # exact, so that equality is
    once, scaled = summarize(values), summarize([value * factor for value in values])
    assert scaled.p99_ms == once.p99_ms * factor
    assert scaled.mean_ms == pytest.approx(once.mean_ms * factor)
    assert scaled.variation_percent == pytest.approx(once.variation_percent, abs=1e-9)


@pytest.mark.parametrize(
    ("values", "unstable"),
    [([10.0] * 50, False), ([10.0, 10.2] * 25, False), ([10.0, 11.0] * 25, True)],
    ids=["constant", "1 percent", "4.8 percent"],
)
def test_variation_above_2_5_percent_is_unstable(values: list[float], unstable: bool) -> None:
    assert summarize(values).unstable is unstable


@pytest.fixture
def runner() -> Iterator[OrtRunner]:
    with OrtRunner(residual_w8a8().SerializeToString(), num_threads=1) as opened:
        yield opened


def test_record_says_what_was_measured_where(runner: OrtRunner) -> None:
    record = bench(runner, {"input": images(4)}, warmup_ms=5, min_seconds=0.05)
    assert (record.runs_on, record.batch, record.num_threads) == ("CPU", 4, 1)
    assert record.what == runner.describe()
    assert record.gpu_compute is None
    assert record.iterations >= 10
    assert record.iterations * record.latency.mean_ms >= 50
    assert record.images_per_second == pytest.approx(4 * record.queries_per_second)
    assert record.queries_per_second == pytest.approx(1000 / record.latency.mean_ms)


def test_record_survives_json_and_leaves_the_gpu_unmeasured(runner: OrtRunner) -> None:
    record = bench(runner, {"input": images(1)}, warmup_ms=0, min_seconds=0, what="w8a8")
    read = json.loads(json.dumps(record.to_json()))
    assert read["what"] == "w8a8"
    assert read["gpu_compute"] is None
    assert read["latency"]["p99_ms"] == record.latency.p99_ms
    assert "transfers included" in read["conditions"]


def test_few_seconds_still_make_the_asked_iterations(runner: OrtRunner) -> None:
    feed = {"input": images(1)}
    record = bench(runner, feed, warmup_ms=0, min_seconds=0, min_iterations=17)
    assert record.iterations == 17


class Timed(OrtRunner):
    """A runner that times its own compute, as an engine with CUDA events does."""

    last_gpu_compute_ms = 0.25


def test_runner_that_times_its_own_compute_gets_a_second_summary() -> None:
    with Timed(residual_w8a8().SerializeToString(), num_threads=1) as runner:
        record = bench(runner, {"input": images(1)}, warmup_ms=0, min_seconds=0)
    assert record.gpu_compute is not None
    assert record.gpu_compute.mean_ms == 0.25
    assert not record.gpu_compute.unstable


def test_progress_rises_to_the_end(runner: OrtRunner) -> None:
    seen: list[tuple[int, int]] = []
    bench(
        runner,
        {"input": images(1)},
        warmup_ms=0,
        min_seconds=0.05,
        progress=lambda done, total, _: seen.append((done, total)),
    )
    done = [step for step, _ in seen]
    assert done == sorted(set(done))
    assert seen[-1] == (100, 100)


def test_interrupt_stops_between_two_runs(runner: OrtRunner) -> None:
    def interrupt(done: int, total: int, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench(runner, {"input": images(1)}, warmup_ms=0, min_seconds=600, progress=interrupt)
    assert np.isfinite(runner.infer({"input": images(1)})["logits"]).all()


@pytest.mark.parametrize(
    "options", [{"min_iterations": 0}, {"min_seconds": -1.0}, {"warmup_ms": -1.0}]
)
def test_bench_of_nothing_is_refused(runner: OrtRunner, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="want 1 or more iterations and no negative time"):
        bench(runner, {"input": images(1)}, **options)  # type: ignore[arg-type]  # a grid
