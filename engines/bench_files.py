"""Benches files together in one session, batch by batch, and says what was measured where."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fdda_deploy.engines.bench import (
    BenchOptions,
    BenchRecord,
    Progress,
    Subject,
    bench_together,
)
from fdda_deploy.engines.feeds import load_feed, random_feed
from fdda_deploy.engines.open_file import OpenOptions, runner_for
from fdda_deploy.engines.runner import Feed
from fdda_deploy.errors import ConfigError

FEED_SEED = 0


@dataclass(frozen=True)
class FileRecord:
    """One file at one batch.

    Attributes:
        path: The file.
        num_bytes: Its size; of a plan this is the plan.
        runs: What ran it.
        record: What was measured.
    """

    path: Path
    num_bytes: int
    runs: str
    record: BenchRecord


def bench_files(
    paths: Sequence[Path],
    batches: Sequence[int],
    open_options: OpenOptions,
    options: BenchOptions,
    *,
    feed: Path | None = None,
    progress: Progress | None = None,
) -> list[FileRecord]:
    """Returns one record per batch and file; at each batch all files are measured in turns.

    Args:
        paths: .onnx files and plans, for instance the float32, float16 and INT8 forms of a network.
        batches: Images per run; each its own session.
        open_options: How to run them.
        options: How to measure.
        feed: .npz file with a batch for every graph; None makes random ones.
        progress: Told of every hundredth of each session.

    Raises:
        ConfigError: No file, no batch, a batch below 1, or a feed with several batches.
        DataError: The feed is no .npz file.
        EngineError: A file does not open or run, or the feed does not fit.
    """
    if not paths or not batches or min(batches) < 1:
        raise ConfigError("bench: want one file or more, and batches of 1 or more.")
    if feed is not None and len(batches) > 1:
        raise ConfigError("bench --feed: the file has one batch. Leave --batches out.")
    labels = _labels(paths)
    found = []
    with ExitStack() as stack:
        runners = [runner_for(path, open_options) for path in paths]
        for runner in runners:
            stack.enter_context(runner)
        for batch in batches:
            subjects = []
            for label, runner in zip(labels, runners, strict=True):
                arrays: Feed = (
                    load_feed(feed, runner.inputs)
                    if feed is not None
                    else random_feed(runner.inputs, batch, FEED_SEED)
                )
                subjects.append(Subject(label, runner, arrays))
            records = bench_together(subjects, options, progress=progress)
            found += [
                FileRecord(path, path.stat().st_size, runner.describe(), record)
                for path, runner, record in zip(paths, runners, records, strict=True)
            ]
    return found


def _labels(paths: Sequence[Path]) -> list[str]:
    """Returns the files' names, or whole paths where two names are the same."""
    names = [path.name for path in paths]
    return [str(p) if names.count(p.name) > 1 else p.name for p in paths]
