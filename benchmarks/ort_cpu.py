"""``--target ort-cpu`` against ONNX Runtime's own static quantization, on the same images.

    python benchmarks/ort_cpu.py --out benchmarks/results/ort_cpu.json

One thread, batch 1. A round measures every graph in turns of 50 ms; the figure of a graph is the
median over rounds of its median, and a ratio is the median of the rounds' ratios. Accuracy is of
the very session that is timed, on images that nothing was chosen by. Ours: ranges by an observer,
weights rounded to nearest, nothing trained. Theirs: ``quantize_static``, QDQ, per channel, on the
same folded graph: its default activation type, and the UINT8 that its documentation advises.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from real_networks import RealNetwork, load

from fdda_deploy.engines.bench import BenchOptions, Subject, bench_together
from fdda_deploy.engines.bench_environment import cpu_name
from fdda_deploy.engines.compare import compare_arrays
from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.exporters import names
from fdda_deploy.exporters.placement import place
from fdda_deploy.exporters.qdq import Grids, insert_qdq
from fdda_deploy.pipeline.allocator import keep_freed_memory
from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import GraphMap, convert
from fdda_deploy.quant.scheme import scheme_from_name

NETWORKS = ["cifar_resnet20", "mobilenet_v2"]
THEIRS = {"theirs, default": None, "theirs, uint8": QuantType.QUInt8}
OBSERVERS = ("minmax", "mse")


def main() -> None:
    """Measures every network and writes the JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", nargs="*", default=NETWORKS)
    parser.add_argument("--num-calib", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="per graph and round")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    found: list[dict[str, object]] = []
    for name in arguments.network:
        real = load(name, num_calib=arguments.num_calib, num_tune=1)
        with tempfile.TemporaryDirectory() as folder:
            graphs = _graphs(real, Path(folder))
            rows = _measured(real, graphs, arguments.rounds, arguments.seconds)
        settings = {"num_calib": arguments.num_calib, "rounds": arguments.rounds}
        found.append({"network": name, **settings, "rows": rows})
        document = {
            "onnxruntime": ort.__version__,
            "cpu": cpu_name(),
            "threads": 1,
            "batch": 1,
            "seconds_per_round": arguments.seconds,
            "networks": found,
        }
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _graphs(real: RealNetwork, folder: Path) -> dict[str, Path]:
    """Returns the files to compare, by label."""
    graphs = {"float": folder / "float.onnx"}
    onnx.save(real.graph.proto, graphs["float"])
    for label, kind in THEIRS.items():
        graphs[label] = folder / f"{label}.onnx"
        types = {} if kind is None else {"activation_type": kind}
        quantize_static(
            str(graphs["float"]),
            str(graphs[label]),
            _Reader(real),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            **types,
        )
    for observer in OBSERVERS:
        graphs[f"ours, {observer}"] = folder / f"{observer}.onnx"
        onnx.save(_ours(real, observer), graphs[f"ours, {observer}"])
    return graphs


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # the package carries no types
    """Hands ONNX Runtime's calibrator one image at a time."""

    def __init__(self, real: RealNetwork) -> None:
        self._images: Iterator[torch.Tensor] = iter(torch.split(real.calib, 1))

    def get_next(self) -> dict[str, Any] | None:
        """Returns the next feed, None at the end."""
        image = next(self._images, None)
        return None if image is None else {names.INPUT: image.numpy()}


def _ours(real: RealNetwork, observer: str) -> onnx.ModelProto:
    graph = real.graph
    placement = place(
        graph.proto,
        scheme_from_name("w8a8"),
        "ort-cpu",
        torch_tensors=graph.fx_from_tensor,
        parameters=graph.parameter_from_initializer,
    )
    twins = GraphMap(graph.fx_from_tensor, graph.fx_from_node, graph.parameter_from_initializer)
    network = convert(graph.module, placement, twins)
    calibrate(network, torch.split(real.calib, 8), observer=observer)
    activations, weights = network.activation_qparams(), network.integer_weights()
    grids = Grids(activations, weights, network.float_parameters())
    return insert_qdq(graph.proto, placement, grids, {})


def _measured(
    real: RealNetwork, graphs: dict[str, Path], rounds: int, seconds: float
) -> list[dict[str, object]]:
    feed = {names.INPUT: real.calib[:1].numpy()}
    options = BenchOptions(min_seconds=seconds)
    with ExitStack() as stack:
        runners = {
            label: stack.enter_context(OrtRunner(path, optimizations="all", num_threads=1))
            for label, path in graphs.items()
        }
        subjects = [Subject(label, runner, feed) for label, runner in runners.items()]
        medians: dict[str, list[float]] = {label: [] for label in graphs}
        for _ in range(rounds):
            for record in bench_together(subjects, options):
                medians[record.what].append(record.latency.median_ms)
        wanted = _logits(runners["float"], real)
        rows = []
        for label, path in graphs.items():
            pairs = zip(medians[label], medians["theirs, default"], strict=True)
            row = {
                "graph": label,
                "median_ms": statistics.median(medians[label]),
                "round_medians_ms": medians[label],
                "ratio_to_theirs": statistics.median(a / b for a, b in pairs),
                "onnx_bytes": path.stat().st_size,
                "operators": _operators(path),
                **_accuracy(_logits(runners[label], real), wanted, real),
            }
            rows.append(row)
            print({key: row[key] for key in row if key != "round_medians_ms"}, flush=True)
    return rows


def _logits(runner: OrtRunner, real: RealNetwork) -> np.ndarray:
    batches = torch.split(real.val[0], 1)
    return np.concatenate([runner.infer({names.INPUT: x.numpy()})[names.OUTPUT] for x in batches])


def _accuracy(got: np.ndarray, wanted: np.ndarray, real: RealNetwork) -> dict[str, object]:
    labels = real.val[1].numpy()
    log_p, log_q = (torch.log_softmax(torch.from_numpy(x), 1) for x in (wanted, got))
    against = compare_arrays(names.OUTPUT, wanted, got)
    return {
        "images": len(labels),
        "top1": 100 * float((got.argmax(1) == labels).mean()),
        "float_agreement": against.top1_agreement,
        "relative_l2": against.relative_l2,
        "kl_nats": float((log_p.exp() * (log_p - log_q)).sum(1).mean()),
    }


def _operators(path: Path) -> dict[str, int]:
    """Returns what ONNX Runtime makes of the graph: operators of the optimized one, by type."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    return dict(Counter(node.op_type for node in nodes).most_common())


if __name__ == "__main__":
    main()
