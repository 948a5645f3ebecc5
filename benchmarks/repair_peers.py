"""Other quantizers' graphs, repaired: do they build on TensorRT-RTX, and how large is the plan?

    python benchmarks/repair_peers.py --out benchmarks/results/repair_peers.json [--random]

mobilenet_v2 as ONNX Runtime's static quantization writes it (Q/DQ and QOperator, UINT8 and INT8
activations, per tensor and per channel) and in the style of ModelOpt, each repaired by `check
--fix` for rtx. Every row: whether the builder takes it before and after, the plan's bytes beside
those of our own export calibrated on the same inputs, how far the outputs moved, and before and
after how far both are from the float network on other photographs (`imagenet_tune`); all of it
with and without a compact plan, and with one beside the plan of `fdda-deploy export`'s default
(`compact_plan.py`). Then the time of `check` on a Q/DQ graph of resnet50. The build needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision
from torch import nn

from fdda_deploy.engines.compare import compare_arrays
from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_build import BuildOptions, build_plan
from fdda_deploy.errors import BuildError
from fdda_deploy.exporters.float_onnx import FloatGraph, export_float
from fdda_deploy.exporters.trt_rules import check
from fdda_deploy.pipeline.data import open_images, read_classes
from fdda_deploy.pipeline.models import load_float_model
from fdda_deploy.pipeline.network import trace
from fdda_deploy.pipeline.quantization.fold import fold_batch_norm
from fdda_deploy.pipeline.repairing import fix

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "exporters"))  # the peers' graphs are made for tests too
from peer_graphs import modelopt_style, ort_static, own_export, ranges  # noqa: E402

SHARED = ROOT.parent / "shared" / "data"
TARGET = "rtx"
COMPACT = ROOT / "benchmarks" / "results" / "compact_plan.json"
SHAPE = (3, 224, 224)


def float_graph(name: str, *, random: bool) -> tuple[FloatGraph, str]:
    """Returns a folded float graph, and which weights it has."""
    weights = SHARED / f"weights/{name}.pth"
    if weights.is_file() and not random:
        module = load_float_model(name, weights=str(weights)).module
        return exported(module), weights.name
    torch.manual_seed(0)
    return exported(torchvision.models.get_model(name, weights=None).eval()), "random, seed 0"


def exported(module: nn.Module) -> FloatGraph:
    """Returns a network's folded float graph."""
    return export_float(fold_batch_norm(trace(module, SHAPE)), SHAPE)


def inputs(count: int, seed: int, name: str = "imagenet_calib") -> np.ndarray:
    """Returns photographs where they stand beside the checkout, else normal numbers."""
    archive = SHARED / f"images/{name}.tar"
    if not archive.is_file():
        return np.random.default_rng(seed).standard_normal((count, *SHAPE), np.float32)
    weights = SHARED / "weights/mobilenet_v2.pth"
    found = open_images(
        str(archive),
        load_float_model("mobilenet_v2", weights=str(weights)).preprocessing,
        classes=read_classes(SHARED / "images/wnids.txt"),
        num_classes=1000,
        limit=count,
        seed=seed,
    )
    return found.load(np.arange(len(found)))[0].numpy()


def peers(
    graph: FloatGraph, batches: list[np.ndarray], found: dict[str, float]
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yields (name, quantized graph) of every peer."""
    for operators in (False, True):
        for unsigned in (True, False):
            for per_channel in (False, True):
                name = (
                    f"ONNX Runtime, {'QOperator' if operators else 'QDQ'}, "
                    f"{'UINT8' if unsigned else 'INT8'} activations, "
                    f"per {'channel' if per_channel else 'tensor'}"
                )
                with tempfile.TemporaryDirectory() as folder:
                    yield (
                        name,
                        ort_static(
                            graph.proto,
                            batches,
                            Path(folder),
                            operators=operators,
                            per_channel=per_channel,
                            unsigned=unsigned,
                        ),
                    )
    yield "ModelOpt's style", modelopt_style(graph.proto, found)


def plan_bytes(model: onnx.ModelProto) -> tuple[int | None, str]:
    """Returns the size of the plan, or None and the builder's words."""
    try:
        plan = build_plan(model.SerializeToString(), BuildOptions(), load_api("tensorrt_rtx"))
    except BuildError as error:
        return None, str(error)[:300]
    return len(plan.plan), ""


def logits(model: onnx.ModelProto, batch: np.ndarray) -> np.ndarray:
    """Returns the first output of ONNX Runtime with basic optimizations."""
    with OrtRunner(model.SerializeToString(), optimizations="basic") as runner:
        found = runner.infer({runner.input_names[0]: batch})
    return next(iter(found.values()))


def judged(model: onnx.ModelProto, floats: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """Returns the distance of a graph from the float network's logits ``(N, classes)``."""
    parts = [logits(model, batch) for batch in np.array_split(others, len(others) // 8)]
    log_p, log_q = (log_softmax(found) for found in (floats, np.concatenate(parts)))
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return {
        "kl_nats": round(float(kl.mean()), 5),
        "kl_standard_error": round(float(kl.std() / len(kl) ** 0.5), 5),
        "top1_agreement": float((log_p.argmax(axis=1) == log_q.argmax(axis=1)).mean()),
    }


def log_softmax(found: np.ndarray) -> np.ndarray:
    """Returns log-probabilities, float64, of logits ``(N, classes)``."""
    shifted = found.astype(np.float64) - found.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def row(
    name: str,
    model: onnx.ModelProto,
    graph: FloatGraph,
    feed: np.ndarray,
    own_bytes: int,
    judges: tuple[np.ndarray, np.ndarray],
) -> dict[str, object]:
    """Returns everything measured on one peer's graph."""
    before, refusal = plan_bytes(model)
    known = json.loads(COMPACT.read_text(encoding="utf-8"))["rows"]
    (own_default,) = (row for row in known if "default" in row["result"])
    return {
        "peer": name,
        "plan_bytes_before": before,
        "refusal_before": refusal,
        "others_before": judged(model, *judges),
        **repaired(model, graph, feed, own_bytes, judges, compact=False),
        "compact": repaired(model, graph, feed, own_default["plan_bytes"], judges, compact=True),
    }


def repaired(
    model: onnx.ModelProto,
    graph: FloatGraph,
    feed: np.ndarray,
    own_bytes: int,
    judges: tuple[np.ndarray, np.ndarray],
    *,
    compact: bool,
) -> dict[str, object]:
    """Returns what is measured on the repaired graph."""
    started = time.perf_counter()
    named = {graph.proto.graph.input[0].name: feed}
    fixed = fix(model, target=TARGET, feed=named, compact_plan=compact)
    seconds = time.perf_counter() - started
    after, reason = plan_bytes(fixed.model)
    assert fixed.proof is not None
    against = fixed.proof.against_float
    assert against is not None
    (output,) = against.twins
    reference = logits(graph.proto, feed)
    proof = next(iter(fixed.proof.outputs.values()))
    was = compare_arrays("logits", reference, logits(model, feed))
    now = compare_arrays("logits", reference, logits(fixed.model, feed))
    return {
        "errors_before": sum(f.severity == "error" for f in fixed.before),
        "errors_after": sum(f.severity == "error" for f in fixed.after),
        "repairs": dict(Counter(change.repair for change in fixed.applied)),
        "plan_bytes_after": after,
        "refusal_after": reason,
        "plan_over_own": None if after is None else round(after / own_bytes, 4),
        "fix_seconds": round(seconds, 2),
        "grids_changed": against.grids,
        "worst_grid_over_due": against.worst_grid,
        "widest_grid": against.widest_grid,
        "weights_rounded_anew": against.weights,
        "worst_weight_steps": against.worst_weight,
        "float_twins_relative_l2": against.twins[output],
        "to_its_twin_relative_l2_before": round(against.before[output].relative_l2, 5),
        "to_its_twin_relative_l2_after": round(against.after[output].relative_l2, 5),
        "moved_relative_l2": round(proof.relative_l2, 5),
        "moved_max_abs_error": round(proof.max_abs_error, 5),
        "moved_top1_agreement": proof.top1_agreement,
        "to_float_relative_l2_before": round(was.relative_l2, 5),
        "to_float_relative_l2_after": round(now.relative_l2, 5),
        "zero_points_taken_up": sum("taken up" in change.what for change in fixed.applied),
        "others_after": judged(fixed.model, *judges),
        "to_float_top1_before": was.top1_agreement,
        "to_float_top1_after": now.top1_agreement,
    }


def check_seconds() -> dict[str, object]:
    """Returns the best of five times of `check` on a Q/DQ graph of resnet50, in seconds."""
    graph, weights = float_graph("resnet50", random=True)
    found = ranges(graph.proto, [np.random.default_rng(0).standard_normal((1, *SHAPE), np.float32)])
    model = own_export(graph, TARGET, found)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        findings = check(model, target=TARGET, profiles_given=True)
        times.append(time.perf_counter() - started)
    return {
        "network": "resnet50",
        "weights": weights,
        "nodes": len(model.graph.node),
        "findings": len(findings),
        "seconds": round(min(times), 3),
    }


def main() -> None:
    """Measures, prints a line per peer, writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--random", action="store_true", help="random weights")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--others", type=int, default=64, help="photographs to judge by")
    arguments = parser.parse_args()
    graph, weights = float_graph("mobilenet_v2", random=arguments.random)
    calib, feed = inputs(arguments.images, 0), inputs(8, 1)
    batches = list(np.array_split(calib, max(len(calib) // 4, 1)))
    found = ranges(graph.proto, batches)
    own, refusal = plan_bytes(own_export(graph, TARGET, found))
    assert own is not None, refusal
    others = inputs(arguments.others, 0, "imagenet_tune")
    floats = [logits(graph.proto, batch) for batch in np.array_split(others, len(others) // 8)]
    judges = np.concatenate(floats), others
    rows = []
    for name, model in peers(graph, batches, found):
        rows.append(row(name, model, graph, feed, own, judges))
        shown = ("plan_over_own", "moved_relative_l2", "to_float_relative_l2_before")
        print(name, *(rows[-1][key] for key in (*shown, "to_float_relative_l2_after")))
        print(json.dumps(rows[-1]["compact"]), flush=True)
    result = {
        "network": "mobilenet_v2",
        "weights": weights,
        "target": TARGET,
        "calibration_images": len(calib),
        "other_images": len(others),
        "own_plan_bytes": own,
        "float_plan_bytes": plan_bytes(graph.proto)[0],
        "builder": load_api("tensorrt_rtx").title,
        "machine": platform.machine(),
        "peers": rows,
        "check": check_seconds(),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
