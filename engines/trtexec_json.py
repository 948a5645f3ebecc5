"""trtexec's JSON of run times (``--exportTimes``): read from TensorRT 8 to 11, and written.

A list with one object per run. TensorRT 8.0 wrote ``inMs`` and ``outMs`` where later releases write
``h2dMs`` and ``d2hMs``; both are read. Keys that are not known are skipped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fdda_deploy.engines.bench_statistics import LatencySummary, summarize
from fdda_deploy.engines.run_times import RunTimes
from fdda_deploy.errors import EngineError

LARGEST_BYTES = 2**28
"""256 MiB: a million runs, an hour at 4 ms; more is a file of something else."""
ADVICE = "Write it with trtexec --exportTimes=FILE, or fdda-deploy bench --export-times FILE."
OLD_NAMES = {"h2dMs": "inMs", "d2hMs": "outMs"}


@dataclass(frozen=True)
class TrtexecTimes:
    """What one file of trtexec says, in ms.

    Attributes:
        iterations: Runs in it.
        latency: Host latency: copy in, compute and copy out.
        compute: Kernel time.
        h2d: Copy of the inputs; None where the file has none.
        d2h: Copy of the outputs; None where the file has none.
        enqueue: Host time to hand a run over; None where the file has none.
        queries_per_second: Runs by the time from the first to the last; None for one run.
    """

    iterations: int
    latency: LatencySummary
    compute: LatencySummary
    h2d: LatencySummary | None
    d2h: LatencySummary | None
    enqueue: LatencySummary | None
    queries_per_second: float | None


def times_to_json(times: Sequence[RunTimes]) -> list[dict[str, float]]:
    """Returns runs in trtexec's schema, ready for ``json.dumps``."""
    return [
        {
            "startEnqMs": run.start_enqueue_ms,
            "endEnqMs": run.end_enqueue_ms,
            "startH2dMs": run.start_h2d_ms,
            "endH2dMs": run.end_h2d_ms,
            "startComputeMs": run.start_compute_ms,
            "endComputeMs": run.end_compute_ms,
            "startD2hMs": run.start_d2h_ms,
            "endD2hMs": run.end_d2h_ms,
            "h2dMs": run.h2d_ms,
            "computeMs": run.compute_ms,
            "d2hMs": run.d2h_ms,
            "latencyMs": run.latency_ms,
        }
        for run in times
    ]


def load_trtexec_times(path: Path) -> TrtexecTimes:
    """Returns what the runs in a file of trtexec come to.

    Raises:
        EngineError: No such file, no JSON, or not trtexec's; names the run and the key.
    """
    return times_from_json(load_json(path, ADVICE), str(path))


def load_json(path: Path, advice: str) -> object:
    """Returns the JSON document in a file that anybody may have written.

    Raises:
        EngineError: Missing, too large, not UTF-8 JSON, or nested too deeply; ends with ``advice``.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise EngineError(f"{path}: {size:,} bytes, want {LARGEST_BYTES:,} at most. {advice}")
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise EngineError(f"{path}: not readable JSON ({reason}). {advice}") from None


def times_from_json(document: object, where: str) -> TrtexecTimes:
    """Returns what the runs of a document in trtexec's schema come to.

    Args:
        document: What ``json.loads`` gave.
        where: What messages call it.

    Raises:
        EngineError: Another schema, no run, or a value that is no time; names the run and the key.
    """
    if not isinstance(document, list) or not document:
        raise EngineError(
            f"{where}: got {_kind(document)}, want trtexec's list of one or more runs. {ADVICE}"
        )
    runs = []
    for index, run in enumerate(document):
        if not isinstance(run, dict):
            raise EngineError(f"{where}: run {index} is {_kind(run)}, want an object. {ADVICE}")
        runs.append(_Run(run, f"{where}: run {index}"))
    starts = [run.optional("startComputeMs") for run in runs]
    ends = [run.optional("endComputeMs") for run in runs]
    span = _span(starts, ends)
    return TrtexecTimes(
        iterations=len(runs),
        latency=summarize([run.required("latencyMs") for run in runs]),
        compute=summarize([run.required("computeMs") for run in runs]),
        h2d=_summary([run.optional("h2dMs") for run in runs]),
        d2h=_summary([run.optional("d2hMs") for run in runs]),
        enqueue=_summary([run.enqueue() for run in runs]),
        queries_per_second=1000 * len(runs) / span if span else None,
    )


@dataclass(frozen=True)
class _Run:
    """One object of the list."""

    values: dict[str, object]
    where: str

    def required(self, key: str) -> float:
        """Returns a duration in ms."""
        found = self.optional(key)
        if found is None:
            raise EngineError(f"{self.where} has no {key}. {ADVICE}")
        if found < 0:
            raise EngineError(f"{self.where}: {key} is {found:g} ms, want 0 or more. {ADVICE}")
        return found

    def optional(self, key: str) -> float | None:
        """Returns a time in ms, None where the run does not have it."""
        value = self.values.get(key, self.values.get(OLD_NAMES.get(key, key)))
        if value is None:
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not abs(_float(value)) < 1e15:  # also false for NaN and infinity
            raise EngineError(f"{self.where}: {key} is {_kind(value)}, want a time in ms. {ADVICE}")
        return _float(value)

    def enqueue(self) -> float | None:
        """Returns how long the host took to hand the run over."""
        start, end = self.optional("startEnqMs"), self.optional("endEnqMs")
        return None if start is None or end is None else max(0.0, end - start)


def _span(starts: list[float | None], ends: list[float | None]) -> float | None:
    """Returns the time from the first run's beginning to the last one's end, None if unknown."""
    first = [value for value in starts if value is not None]
    last = [value for value in ends if value is not None]
    if len(first) < 2 or not last or max(last) <= min(first):
        return None
    return max(last) - min(first)


def _summary(values: list[float | None]) -> LatencySummary | None:
    known = [value for value in values if value is not None]
    return summarize(known) if len(known) == len(values) else None


def _float(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]  # only numbers come here
    except OverflowError:  # an integer of more than 308 digits
        return math.inf


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    if value is None:
        return "null"
    if isinstance(value, list) and not value:
        return "an empty list"
    return names.get(type(value), "a number out of range" if _is_number(value) else "no JSON")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
