"""What a compact plan saves and costs: results of `fdda-deploy export`, judged on other images.

    for plan in compact no-compact; do
      fdda-deploy export mobilenet_v2 --weights FILE.pth --scheme w8a8 --target rtx --effort fast \
        --recipe none --calib-data imagenet_calib.tar --calib-limit 128 --classes wnids.txt \
        --$plan-plan --out out/$plan
    done
    python benchmarks/compact_plan.py out/compact out/no-compact --out FILE.json

Of each folder the bytes of TensorRT-RTX's plan, and in ONNX Runtime the distance of its logits from
the float network's on 64 photographs of `imagenet_tune` that nothing was calibrated on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.engines.plan_kernels import source_bytes
from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_build import BuildOptions, build_plan
from fdda_deploy.pipeline.data import open_images, read_classes
from fdda_deploy.pipeline.models import load_float_model

SHARED = Path(__file__).parents[2] / "shared" / "data"
NUM_IMAGES = 64
NETWORK = "mobilenet_v2"


def images() -> tuple[np.ndarray, np.ndarray]:
    """Returns photographs (N, 3, 224, 224) and their classes (N,)."""
    model = load_float_model(NETWORK, weights=str(SHARED / f"weights/{NETWORK}.pth"))
    found = open_images(
        str(SHARED / "images/imagenet_tune.tar"),
        model.preprocessing,
        classes=read_classes(SHARED / "images/wnids.txt"),
        num_classes=1000,
        limit=NUM_IMAGES,
        seed=0,
    )
    x, labels = found.load(np.arange(len(found)))
    return x.numpy(), np.asarray(labels)


def log_probabilities(file: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits and log-probabilities, both (N, classes) float64."""
    with OrtRunner(file.read_bytes(), optimizations="basic", num_threads=1) as runner:
        parts = [
            next(iter(runner.infer({runner.input_names[0]: part}).values()))
            for part in np.array_split(x, 8)
        ]
    logits = np.concatenate(parts).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return logits, shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def plan_of(file: Path) -> bytes:
    """Returns the plan that TensorRT-RTX builds of a file."""
    return build_plan(file.read_bytes(), BuildOptions(), load_api("tensorrt_rtx")).plan


def measured(folder: Path, x: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Returns the row of one result folder."""
    floats, log_p = log_probabilities(folder / "model.fp32.onnx", x)
    logits, log_q = log_probabilities(folder / "model.qdq.onnx", x)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    plan = plan_of(folder / "model.qdq.onnx")
    float_bytes = len(plan_of(folder / "model.fp32.onnx"))
    return {
        "result": folder.name,
        "plan_bytes": len(plan),
        "float_plan_bytes": float_bytes,
        "of_float": round(len(plan) / float_bytes, 4),
        "generated_kernels": len(source_bytes(plan)),
        "source_bytes": sum(source_bytes(plan).values()),
        "relative_l2": float(np.linalg.norm(logits - floats) / np.linalg.norm(floats)),
        "kl_nats": float(kl.mean()),
        "kl_standard_error": float(kl.std() / len(kl) ** 0.5),
        "num_images": len(x),
        "top1_right": int((logits.argmax(axis=1) == labels).sum()),
        "float_top1_right": int((floats.argmax(axis=1) == labels).sum()),
    }


def main() -> None:
    """Measures every folder, prints a line each, writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    x, labels = images()
    rows = []
    for folder in arguments.folders:
        rows.append(measured(folder, x, labels))
        print(json.dumps(rows[-1]), flush=True)
    text = json.dumps({"network": NETWORK, "rows": rows}, indent=1) + "\n"
    arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
