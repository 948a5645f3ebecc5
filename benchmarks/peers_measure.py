"""What one quantized graph is worth: accuracy, its TensorRT-RTX plan, CPU latency, bytes."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers_inputs import Inputs, logits_of

from fdda_deploy.engines.bench import BenchOptions, Subject, bench_together
from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_build import BuildOptions, build_plan
from fdda_deploy.errors import EngineError, FddaDeployError
from fdda_deploy.pipeline.evaluate import Drop, Evaluation, paired_drop

WORDS = 300


FLOAT = "float"


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        threads: CPU threads of every session.
        rounds: Of all graphs; a ratio is the median of theirs.
        seconds: For each graph in each round.
    """

    threads: int = 1
    rounds: int = 3
    seconds: float = 1.0


def measured(
    graph: Path, inputs: Inputs, threads: int = 1, maker: Path | None = None
) -> dict[str, Any]:
    """Returns all that is measured on a quantized graph, JSON values.

    Accuracy is of the graph as it is written (no optimization), on test images; the same of the
    float graph. Where ONNX Runtime refuses the graph, ``ort_words`` has what it says, and accuracy
    comes from ``maker``. Latency is not among it: `latencies`.

    Args:
        graph: The quantized one.
        inputs: Of its network.
        threads: CPU threads.
        maker: Python of the environment that made it, with an ONNX Runtime of its own.
    """
    plan, words = plan_bytes(graph)
    found = {
        "rtx_accepts": plan is not None,
        "rtx_words": words,
        "plan_bytes": plan,
        "float_plan_bytes": plan_bytes(inputs.float_graph)[0],
        "model_bytes": graph.stat().st_size,
        "float_bytes": inputs.float_graph.stat().st_size,
        "ort_words": "",
    }
    images, labels = inputs.test()
    logits = None
    try:
        logits = logits_of(graph, images, threads)
    except EngineError as error:
        found["ort_words"] = said(error, graph)
        if maker is not None:
            logits = logits_elsewhere(maker, graph, inputs, threads)
    if logits is None:
        return {**found, "failed": found["ort_words"]}
    return found | accuracy(logits, inputs.float_logits(), labels)


def logits_elsewhere(
    python: Path, graph: Path, inputs: Inputs, threads: int
) -> NDArray[np.float32] | None:
    """Returns a graph's logits by another environment's ONNX Runtime; None where it fails too."""
    out = graph.with_suffix(".logits.npy")
    files = [str(graph), str(inputs.folder / "test.npy"), str(out)]
    command = [str(python), str(Path(__file__).parent / "peers_logits.py"), *files]
    done = subprocess.run([*command, "--threads", str(threads)], check=False, capture_output=True)
    if done.returncode:
        return None
    found: NDArray[np.float32] = np.load(out)
    return found


def said(error: FddaDeployError, graph: Path) -> str:
    """Returns an error's words without the path of the file, which is of this machine."""
    return str(error).replace(str(graph), graph.name)[:WORDS]


def accuracy(
    got: NDArray[np.float32], wanted: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, Any]:
    """Returns top-1, its paired drop, and KL(float || quantized) in nats.

    Args:
        got: Logits ``(n, classes)`` of the quantized graph.
        wanted: Those of the float graph.
        labels: ``(n,)``.
    """
    right = {"float": wanted.argmax(1) == labels, "quantized": got.argmax(1) == labels}
    log_p, log_q = (torch.log_softmax(torch.from_numpy(x).double(), 1) for x in (wanted, got))
    drop = drop_between(right["float"], right["quantized"])
    return {
        "n": len(labels),
        "float_top1": 100 * float(right["float"].mean()),
        "top1": 100 * float(right["quantized"].mean()),
        "drop": dataclasses.asdict(drop),
        "kl_nats": float((log_p.exp() * (log_p - log_q)).sum(1).mean()),
        "right": packed(right["quantized"]),
    }


def drop_between(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Drop:
    """Returns the paired difference of two networks by which images each gets right."""

    def judged(right: NDArray[np.bool_]) -> Evaluation:
        ones = np.ones(len(right), np.int64)
        top1 = 100 * float(right.mean())
        return Evaluation(right.astype(np.int64), ones, top1, None, len(right), top1, top1)

    return paired_drop(judged(first), judged(second))


def packed(right: NDArray[np.bool_]) -> str:
    """Returns which images are right as hex digits, the first image in the highest bit."""
    return np.packbits(right).tobytes().hex()


def unpacked(text: str, count: int) -> NDArray[np.bool_]:
    """Returns which of ``count`` images are right; the inverse of `packed`."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)


@functools.cache
def plan_bytes(graph: Path) -> tuple[int | None, str]:
    """Returns the size of TensorRT-RTX's plan of a graph as it stands, or None and its words."""
    try:
        plan = build_plan(graph.read_bytes(), BuildOptions(), load_api("tensorrt_rtx"))
    except FddaDeployError as error:
        return None, said(error, graph)
    return len(plan.plan), ""


def latencies(
    graphs: Mapping[str, Path], inputs: Inputs, effort: Effort
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns by label each graph's latency in ms and its ratio to the float graph's, batch 1.

    All graphs of a network take turns of 50 ms in one session, with all of ONNX Runtime's
    optimizations, so that a machine that grows busy or slow does so for all of them. A graph that
    ONNX Runtime refuses is left out; by its label the second result has what it says.
    """
    images, _ = inputs.test()
    options = BenchOptions(min_seconds=effort.seconds)
    rounds: dict[str, list[float]] = {}
    refused: dict[str, str] = {}
    with ExitStack() as stack:
        subjects = []
        for label, path in {FLOAT: inputs.float_graph, **graphs}.items():
            runner = OrtRunner(path, optimizations="all", num_threads=effort.threads)
            try:
                stack.enter_context(runner)
            except EngineError as error:
                refused[label] = said(error, path)
                continue
            feed = {runner.input_names[0]: np.array(images[:1])}
            subjects.append(Subject(label, runner, feed))
        for _ in range(effort.rounds):
            for record in bench_together(subjects, options):
                rounds.setdefault(record.what, []).append(record.latency.median_ms)
    plain = rounds.pop(FLOAT)
    return {label: compared(found, plain) for label, found in rounds.items()}, refused


def compared(found: Sequence[float], plain: Sequence[float]) -> dict[str, Any]:
    """Returns medians in ms of two graphs' rounds, and the median of the rounds' ratios."""
    return {
        "ms": statistics.median(found),
        "float_ms": statistics.median(plain),
        "ratio": statistics.median(a / b for a, b in zip(found, plain, strict=True)),
        "round_ms": list(found),
        "float_round_ms": list(plain),
    }
