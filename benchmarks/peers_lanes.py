"""Lanes of benchmarks/peers.py: processes that work side by side, each on CPUs of its own.

What a lane starts inherits its CPUs, and numeric libraries count them when they choose threads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue


def lanes_of(lanes: int, threads: int, cpus: Sequence[int]) -> list[list[int]]:
    """Returns the CPUs of each lane: at least one lane, and no CPU in two of them."""
    count = max(1, min(lanes, len(cpus) // threads))
    return [list(cpus[lane * threads : (lane + 1) * threads]) for lane in range(count)]


def open_lanes(lanes: Sequence[Sequence[int]]) -> ProcessPoolExecutor:
    """Returns a pool with a process for each lane, kept to that lane's CPUs."""
    context = get_context("spawn")
    free = context.SimpleQueue()
    for cpus in lanes:
        free.put(list(cpus))
    return ProcessPoolExecutor(len(lanes), context, initializer=_enter, initargs=(free,))


def _enter(free: SimpleQueue[list[int]]) -> None:
    os.sched_setaffinity(0, free.get())
