"""trtexec's run times: written as it writes them, read from any release, and wild files refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engine_graphs import images, residual_w8a8
from hypothesis import given
from hypothesis import strategies as st
from wild import refusal_of

from fdda_deploy.engines.bench import BenchOptions, bench
from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.engines.run_times import times_on_device, times_on_host
from fdda_deploy.engines.trtexec_json import load_trtexec_times, times_from_json, times_to_json
from fdda_deploy.errors import EngineError

KEYS = {
    *("startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs"),
    *("startD2hMs", "endD2hMs", "h2dMs", "computeMs", "d2hMs", "latencyMs"),
}


def runs(count: int = 4, **changes: Any) -> list[dict[str, Any]]:
    """Returns runs as trtexec 10 writes them, 10 ms apart; the first one changed."""
    times = [times_on_device((10.0 * i, 10.0 * i + 0.25), 0.5, 4.0, 0.25) for i in range(count)]
    found: list[dict[str, Any]] = [dict(run) for run in times_to_json(times)]
    found[0].update(changes)
    return found


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(sorted(KEYS)) | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=20,
)


def test_written_runs_have_trtexec_s_keys_and_read_back() -> None:
    with OrtRunner(residual_w8a8().SerializeToString(), num_threads=1) as runner:
        options = BenchOptions(warmup_ms=0, min_seconds=0)
        record = bench(runner, {"input": images(1)}, options=options)
    document = json.loads(json.dumps(times_to_json(record.times)))
    assert all(set(run) == KEYS for run in document)
    read = times_from_json(document, "times.json")
    assert read.iterations == record.iterations
    assert read.latency == record.latency
    assert read.compute == record.latency, "a CPU copies nothing"


def test_runs_of_a_device_are_told_apart() -> None:
    read = times_from_json(runs(), "times.json")
    assert read.h2d is not None
    assert read.d2h is not None
    assert read.enqueue is not None
    means = [part.mean_ms for part in (read.latency, read.compute, read.h2d, read.d2h)]
    assert means == [4.75, 4.0, 0.5, 0.25]
    assert read.enqueue.mean_ms == 0.25
    assert read.queries_per_second == pytest.approx(4 * 1000 / 34)


def test_parts_of_a_run_follow_each_other() -> None:
    run = times_on_device((1.0, 1.5), 0.5, 4.0, 0.25)
    assert run.end_h2d_ms == run.start_compute_ms
    assert run.end_compute_ms == run.start_d2h_ms
    assert run.latency_ms == pytest.approx(run.end_d2h_ms - run.start_enqueue_ms)
    assert times_on_host(3.0, 5.0).latency_ms == 2.0


def test_file_of_an_old_release_is_read() -> None:
    old = [
        {"startComputeMs": i, "endComputeMs": i + 1, "inMs": 0.1, "computeMs": 1.0, "outMs": 0.2}
        | {"latencyMs": 1.3, "endToEndMs": 2.0}
        for i in range(3)
    ]
    read = times_from_json(old, "old.json")
    assert read.h2d is not None
    assert read.h2d.mean_ms == pytest.approx(0.1)
    assert read.enqueue is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "times.json: got an object, want trtexec's list of one or more runs"),
        ([], "times.json: got an empty list"),
        ([3], "run 0 is a number out of range, want an object"),
        (runs(computeMs=None), "run 0 has no computeMs"),
        (runs(latencyMs="5"), "run 0: latencyMs is a string, want a time in ms"),
        (runs(latencyMs=True), "latencyMs is true or false"),
        (runs(latencyMs=float("nan")), "latencyMs is a number out of range"),
        (runs(computeMs=-1), "run 0: computeMs is -1 ms, want 0 or more"),
        (runs(computeMs=10**400), "computeMs is a number out of range"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_no_run_is_named(document: object, message: str) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        times_from_json(document, "times.json")
    assert "--exportTimes" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.fuzz
@given(json_values)
def test_any_json_is_read_or_refused_in_one_line(document: object) -> None:
    assert "\n" not in refusal_of(lambda: times_from_json(document, "x"))


@pytest.mark.fuzz
@given(st.dictionaries(st.sampled_from(sorted(KEYS)), json_values, max_size=3))
def test_any_change_of_a_run_is_read_or_refused(changes: dict[str, object]) -> None:
    said = refusal_of(lambda: times_from_json(runs(**changes), "x"))
    assert said == "" or "x: run 0" in said


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\x00", b"[" * 100_000, b'[{"latencyMs": ' + b"9" * 5000 + b"}]", b"not json"],
    ids=["empty", "no text", "deep", "long number", "words"],
)
def test_file_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "times.json"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"times\.json: not readable JSON") as caught:
        load_trtexec_times(path)
    assert "\n" not in str(caught.value)


def test_missing_file_is_told_with_the_way_to_one(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"No such file or directory\)\. Write it with trtexec"):
        load_trtexec_times(tmp_path / "none.json")
