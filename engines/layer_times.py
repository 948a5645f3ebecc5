"""Times each layer of a plan with TensorRT's profiler; needs the GPU, and slows the run down."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import numpy as np

from fdda_deploy.engines.layer_info import layers_from_json
from fdda_deploy.engines.layer_profile import LayerTime, profile_from_json
from fdda_deploy.engines.runner import Feed
from fdda_deploy.engines.trt_api import TrtApi
from fdda_deploy.engines.trt_run import TrtRunner


def time_layers(runner: TrtRunner, feed: Feed, iterations: int) -> tuple[LayerTime, ...]:
    """Returns the time and the precision of each layer of an entered runner's plan.

    The profiler stays with the runner and slows it down: bench with another one.

    Args:
        runner: Without a CUDA graph, whose layers are not told apart.
        feed: One batch.
        iterations: Runs to take the mean of, 1 or more.

    Raises:
        EngineError: The feed does not fit, or a run failed.
    """
    runner.infer(feed)  # once before: the first run of a shape is slow
    api, engine, context = runner.loaded
    profiler = profiler_of(api)
    context.profiler = profiler
    for _ in range(iterations):
        runner.rerun()
    inspector = engine.create_engine_inspector()
    told = inspector.get_engine_information(api.module.LayerInformationFormat.JSON)
    layers = layers_from_json(json.loads(told), "the engine inspector").layers
    return profile_from_json(profiler.to_json(), "TensorRT's profiler", layers)


def profiler_of(api: TrtApi) -> Any:
    """Returns an ``IProfiler`` for ``context.profiler`` that collects what it is told.

    Its ``to_json()`` is the list that ``trtexec --exportProfile`` writes.
    """
    base: Any = api.module.IProfiler

    class Collector(base):  # type: ignore[misc]  # the bindings carry no types
        def __init__(self) -> None:
            base.__init__(self)  # pybind11 refuses an object whose own base was not initialised
            self.times_ms: dict[str, list[float]] = defaultdict(list)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times_ms[layer_name].append(float(ms))

        def to_json(self) -> list[dict[str, object]]:
            return profile_to_json(self.times_ms)

    return Collector()


def profile_to_json(times_ms: dict[str, list[float]]) -> list[dict[str, object]]:
    """Returns times by layer in the schema of ``trtexec --exportProfile``."""
    total = sum(sum(values) for values in times_ms.values())
    count = max((len(values) for values in times_ms.values()), default=0)
    rows: list[dict[str, object]] = [{"count": count}]
    for name, values in times_ms.items():
        rows.append(
            {
                "name": name,
                "timeMs": sum(values),
                "averageMs": sum(values) / len(values),
                "medianMs": float(np.median(values)),
                "percentage": 100 * sum(values) / total if total else 0.0,
            }
        )
    return rows
