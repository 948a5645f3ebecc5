"""Which engines TensorRT-RTX builds: nine networks, eight precisions, on the CPU, no GPU needed.

    python benchmarks/engine_table.py                      # adds the rows that are missing
    python benchmarks/engine_table.py --network resnet50   # of one network
    python benchmarks/engine_table.py --render             # writes the page from the JSON alone

Each network is a process of its own; the kernel's count of its peak memory starts anew for the
float export and for each row. Ranges come from two random images and weights are rounded to the
nearest step of their largest value: the table is about structure and bytes, never about accuracy.
Rows that exist are not done again; delete them from the JSON for that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_table_networks import NETWORKS, network_of
from engine_table_page import page

from fdda_deploy.durable import write_whole
from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_build import BuildOptions, build_plan
from fdda_deploy.errors import BuildError, ExportError
from fdda_deploy.exporters.compact import is_compact, place_compact
from fdda_deploy.exporters.float_onnx import FloatGraph, export_float
from fdda_deploy.exporters.half import to_half
from fdda_deploy.exporters.placement import place
from fdda_deploy.exporters.qdq import Grids, insert_qdq
from fdda_deploy.exporters.trt_rules import check
from fdda_deploy.pipeline.network import trace
from fdda_deploy.pipeline.quantization.convert import GraphMap, QuantNetwork, convert
from fdda_deploy.pipeline.quantization.fold import fold_batch_norm
from fdda_deploy.pipeline.quantization.fp8_ranges import Fp8Observer, fp8_weight_qparams
from fdda_deploy.pipeline.quantization.observers import MinMaxObserver
from fdda_deploy.pipeline.quantization.shared_scales import share_scales
from fdda_deploy.quant.affine import qparams_from_amax, signed_range
from fdda_deploy.quant.points import Placement, WeightPoint
from fdda_deploy.quant.qparams import SMALLEST_SCALE, QParams
from fdda_deploy.quant.scheme import Scheme, scheme_from_name

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "engine_table.json"
PAGE = ROOT / "docs" / "engine_table.md"
PRECISIONS: dict[str, tuple[str, str]] = {
    "fp32": ("fp16", "fp32"),  # the fp16 scheme quantizes nothing; left in FP32 it is the float
    "fp16": ("fp16", "fp16"),
    "w8a8": ("w8a8", "fp32"),
    "w8a8+fp16": ("w8a8", "fp16"),
    "w4a8": ("w4a8", "fp32"),
    "w4a16": ("w4a16", "fp16"),
    "fp8": ("fp8", "fp32"),
    "fp8+fp16": ("fp8", "fp16"),
}
"""Scheme and float type by the name of the row."""
TARGET = "rtx"
IMAGES = 2


def ranges_by_extremes(network: QuantNetwork, images: torch.Tensor) -> None:
    """Fixes every grid by the extremes of ``images`` and of the weights, in place."""
    points = {point.name: point for point in network.placement.activations}
    for name, quantizer in network.activation_quantizers.items():
        fp8 = points[name].storage == "fp8"
        shifted = points[name].shifted
        quantizer.observer = Fp8Observer(name) if fp8 else MinMaxObserver(name, shifted)
    with torch.no_grad():
        network(images)
    for name, quantizer in network.activation_quantizers.items():
        observer = quantizer.observer
        assert isinstance(observer, MinMaxObserver)
        quantizer.observer = None
        quantizer.set_qparams(observer.qparams(points[name].num_bits))
    share_scales(network)
    for point in network.placement.weights:
        network.set_weight_qparams(point, _weight_grid(network.weight_array(point), point))


def _weight_grid(weight: np.ndarray, point: WeightPoint) -> QParams:
    if point.storage == "fp8":
        return fp8_weight_qparams(weight, point.axis)
    if point.one_scale:
        return qparams_from_amax(np.abs(weight).max(), point.num_bits)
    if point.block_size is None:
        others = tuple(axis for axis in range(weight.ndim) if axis != point.axis)
        return qparams_from_amax(np.abs(weight).max(axis=others), point.num_bits, point.axis)
    blocks = list(weight.shape)
    blocks[point.axis : point.axis + 1] = [blocks[point.axis] // point.block_size, point.block_size]
    amax = np.abs(weight.reshape(blocks)).max(axis=point.axis + 1)
    qmin, qmax = signed_range(point.num_bits)
    scale = np.maximum(amax / np.float32(qmax), np.float32(SMALLEST_SCALE))
    return QParams(scale, qmin, qmax, point.axis, block_size=point.block_size)


def measure(name: str, precisions: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields one row per precision, measured in this process."""
    network, shape, origin = network_of(name)
    _forget_peak()
    start = time.process_time()
    graph = export_float(fold_batch_norm(trace(network, shape)), shape)
    seconds, peak = time.process_time() - start, _peak_mib()
    for precision in precisions:
        row = {"network": name, "precision": precision, "weights": origin}
        try:
            content, images, facts = _exported(graph, shape, *PRECISIONS[precision])
        except ExportError as error:
            yield row | {"builds": False, "words": str(error)}
            continue
        facts["export_cpu_seconds"] += seconds
        facts["export_peak_mib"] = max(peak, facts["export_peak_mib"])
        with torch.no_grad():
            wanted = graph.module(images).numpy()
        yield row | facts | _compared(content, images, wanted) | _built(content)


def _exported(
    graph: FloatGraph, shape: tuple[int, int, int], scheme: str, float_type: str
) -> tuple[bytes, torch.Tensor, dict[str, Any]]:
    """Returns the file, two images, and what the file and making it took."""
    _forget_peak()
    placement = _placed(graph, scheme_from_name(scheme))
    grids, images = _grids(graph, placement, shape)
    start = time.process_time()
    model = insert_qdq(graph.proto, placement, grids, {"fdda_deploy.scheme": scheme})
    islands: tuple[tuple[str, str], ...] = ()
    raised = 0
    if float_type == "fp16":
        halved = to_half(model)
        model, islands, raised = halved.proto, halved.islands, halved.scales_raised
    content = model.SerializeToString()
    facts: dict[str, Any] = {
        "export_cpu_seconds": time.process_time() - start,
        "export_peak_mib": _peak_mib(),
        "onnx_bytes": len(content),
        "weights_quantized": len(placement.weights),
        "left_float": len(placement.left_float),
        "fp32_islands": len(islands),
        "scales_raised": raised,
    }
    return content, images, facts | _checked(model)


def _placed(graph: FloatGraph, scheme: Scheme) -> Placement:
    """Returns where a build with this scheme quantizes by default."""
    names = graph.fx_from_tensor, graph.parameter_from_initializer
    if is_compact(scheme, TARGET):
        return place_compact(graph.proto, scheme, torch_tensors=names[0], parameters=names[1])
    return place(graph.proto, scheme, TARGET, torch_tensors=names[0], parameters=names[1])


def _grids(
    graph: FloatGraph, placement: Placement, shape: tuple[int, int, int]
) -> tuple[Grids, torch.Tensor]:
    images = torch.randn(IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    names = GraphMap(graph.fx_from_tensor, graph.fx_from_node, graph.parameter_from_initializer)
    network = convert(graph.module, placement, names)
    ranges_by_extremes(network, images)
    activations = network.activation_qparams()
    return Grids(activations, network.integer_weights(), network.float_parameters()), images


def _checked(model: Any) -> dict[str, Any]:
    start = time.perf_counter()
    findings = check(model, target=TARGET, profiles_given=True)
    counts: dict[str, int] = {}
    for finding in findings:
        if finding.severity != "note":
            counts[finding.rule] = counts.get(finding.rule, 0) + 1
    errors = [finding.message for finding in findings if finding.severity == "error"]
    return {"check_seconds": time.perf_counter() - start, "errors": errors, "findings": counts}


def _compared(content: bytes, images: torch.Tensor, wanted: np.ndarray) -> dict[str, Any]:
    """Runs the file in ONNX Runtime: the distance to the float network, relative L2."""
    with OrtRunner(content, optimizations="none", num_threads=1) as runner:
        got = runner.infer({"input": images.numpy()})["logits"]
    return {"relative_l2": float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))}


def _built(content: bytes) -> dict[str, Any]:
    api = load_api("tensorrt_rtx")
    try:
        built = build_plan(content, BuildOptions(), api)
    except BuildError as error:
        return {"builds": False, "words": str(error)}
    return {
        "builds": True,
        "words": "; ".join(sorted({line[:200] for line in built.log})),
        "plan_bytes": len(built.plan),
        "build_seconds": built.seconds,
    }


def _forget_peak() -> None:
    """Makes the kernel count the peak of this process's memory from here."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _in_own_process(name: str, precisions: Sequence[str]) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-u", __file__, "--child", name, *precisions]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        yield from map(json.loads, child.stdout)
    if child.returncode:
        raise SystemExit(f"{name}: its process ended with {child.returncode}")


def _save(document: dict[str, Any], out: Path) -> None:
    order = [(name, precision) for name in NETWORKS for precision in PRECISIONS]
    document["rows"].sort(key=lambda row: order.index((row["network"], row["precision"])))
    write_whole(out, (json.dumps(document, indent=1) + "\n").encode())
    if out == RESULT:
        write_whole(PAGE, page(document).encode())


def main() -> None:
    """Measures what is missing, one process a network, and writes the JSON and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--precision", choices=list(PRECISIONS), action="append")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON, to be merged by hand")
    parser.add_argument("--render", action="store_true", help="write the page, measure nothing")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        for row in measure(arguments.child[0], arguments.child[1:]):
            print(json.dumps(row))
        return
    out: Path = arguments.out
    document = json.loads(out.read_text()) if out.exists() else {"rows": []}
    done = {(row["network"], row["precision"]) for row in document["rows"]}
    for name in [] if arguments.render else arguments.network or NETWORKS:
        wanted = arguments.precision or PRECISIONS
        missing = [precision for precision in wanted if (name, precision) not in done]
        document["builder"] = load_api("tensorrt_rtx").title
        document["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, one thread, no GPU"
        for row in _in_own_process(name, missing) if missing else ():
            document["rows"].append(row)
            print(name, row["precision"], row["builds"], row.get("plan_bytes"), row["words"][:200])
            _save(document, out)
    _save(document, out)


if __name__ == "__main__":
    main()
