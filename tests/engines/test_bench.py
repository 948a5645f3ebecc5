"""Percentiles follow trtexec's rule; a bench says what it measured, and stops when told to."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from engine_graphs import images, residual_float, residual_w8a8
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.engines.bench import BenchOptions, Subject, bench, bench_together
from fdda_deploy.engines.bench_statistics import percentile, summarize
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


QUICK = BenchOptions(warmup_ms=0, min_seconds=0)


def test_record_says_what_was_measured_where(runner: OrtRunner) -> None:
    options = BenchOptions(warmup_ms=5, min_seconds=0.05)
    record = bench(runner, {"input": images(4)}, options=options)
    assert (record.runs_on, record.batch, record.num_threads) == ("CPU", 4, 1)
    assert record.what == runner.describe()
    assert (record.warmup_ms, record.interleaved_with) == (5, ())
    assert record.iterations >= 10
    assert record.iterations * record.latency.mean_ms >= 50
    assert record.images_per_second == pytest.approx(4 * record.queries_per_second)
    assert record.queries_per_second == pytest.approx(1000 / record.latency.mean_ms)


def test_record_of_a_cpu_claims_nothing_about_a_gpu(runner: OrtRunner) -> None:
    record = bench(runner, {"input": images(1)}, options=QUICK, what="w8a8")
    read = json.loads(json.dumps(record.to_json()))
    unmeasured = ("enqueue", "h2d", "gpu_compute", "d2h", "cuda_graph", "spin_wait", "transfers")
    assert read["what"] == "w8a8"
    assert all(read[name] is None for name in unmeasured)
    assert read["latency"]["p99_ms"] == record.latency.p99_ms
    assert "times" not in read


def test_few_seconds_still_make_the_asked_iterations(runner: OrtRunner) -> None:
    options = BenchOptions(warmup_ms=0, min_seconds=0, min_iterations=17)
    assert bench(runner, {"input": images(1)}, options=options).iterations == 17


def test_times_of_all_runs_follow_each_other(runner: OrtRunner) -> None:
    times = bench(runner, {"input": images(1)}, options=QUICK).times
    assert all(run.start_compute_ms < run.end_compute_ms for run in times)
    pairs = itertools.pairwise(times)
    assert all(first.end_compute_ms <= second.start_compute_ms for first, second in pairs)


def test_subjects_take_turns_so_that_drift_hits_all_alike(runner: OrtRunner) -> None:
    feed = {"input": images(1)}
    options = BenchOptions(warmup_ms=0, min_seconds=0.2)
    with OrtRunner(residual_float().SerializeToString(), num_threads=1) as other:
        subjects = [Subject("int8", runner, feed), Subject("float", other, feed)]
        first, second = bench_together(subjects, options)
    assert (first.interleaved_with, second.interleaved_with) == (("float",), ("int8",))
    owners = sorted([(run.start_compute_ms, r.what) for r in (first, second) for run in r.times])
    turns = [what for what, _ in itertools.groupby(what for _, what in owners)]
    assert len(turns) >= 6, "200 ms each in turns of 50 ms"
    assert first.iterations * first.latency.mean_ms >= 200


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nothing to measure\. Name a model or a plan"):
        bench_together([], QUICK)


def test_cpu_has_no_transfers_to_leave_out(runner: OrtRunner) -> None:
    options = BenchOptions(transfers=False)
    with pytest.raises(ConfigError, match="runs on the CPU without transfers of its own"):
        bench(runner, {"input": images(1)}, options=options)


def test_progress_rises_to_the_end(runner: OrtRunner) -> None:
    seen: list[tuple[int, int]] = []
    bench(
        runner,
        {"input": images(1)},
        options=BenchOptions(warmup_ms=0, min_seconds=0.05),
        progress=lambda done, total, _: seen.append((done, total)),
    )
    done = [step for step, _ in seen]
    assert done == sorted(set(done))
    assert seen[-1] == (100, 100)


def test_interrupt_stops_between_two_runs(runner: OrtRunner) -> None:
    def interrupt(done: int, total: int, text: str) -> None:
        raise KeyboardInterrupt

    options = BenchOptions(warmup_ms=0, min_seconds=600)
    with pytest.raises(KeyboardInterrupt):
        bench(runner, {"input": images(1)}, options=options, progress=interrupt)
    assert np.isfinite(runner.infer({"input": images(1)})["logits"]).all()


@pytest.mark.parametrize(
    "options", [{"min_iterations": 0}, {"min_seconds": -1.0}, {"warmup_ms": -1.0}]
)
def test_bench_of_nothing_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="want 1 or more iterations and no negative time"):
        BenchOptions(**options)  # type: ignore[arg-type]  # a grid
