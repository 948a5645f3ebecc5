"""Two reports to test with: a full realistic one and one in which almost nothing was measured."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import numpy as np
from rounding_sample import CHANGES, diagnosis, rounding

from fdda_deploy.pipeline.report.schema import Report

_LAYERS = (
    ("conv1", "Conv", 8, 8, 41.6, 37.9),
    ("layer1.0.conv1", "Conv", 4, 8, 21.4, 20.3),
    ("layer1.0.conv2", "Conv", 4, 8, 20.8, 18.9),
    ("layer1.1.conv1", "Conv", 4, 8, 21.9, 19.2),
    ("layer1.1.conv2", "Conv", 4, 8, 20.1, 16.4),
    ("layer2.0.conv1", "Conv", 4, 8, 20.6, 17.8),
    ("layer2.0.conv2", "Conv", 4, 8, 19.4, 15.1),
    ("layer2.0.downsample", "Conv", 4, 8, 18.2, 14.7),
    ("layer2.1.conv1", "Conv", 4, 8, 19.8, 15.9),
    ("layer2.1.conv2", "Conv", 4, 8, 19.1, 13.2),
    ("layer3.0.conv1", "Conv", 4, 8, 18.9, 12.6),
    ("layer3.0.conv2", "Conv", 4, 8, 18.4, 9.7),
    ("layer3.0.downsample", "Conv", 4, 8, 17.6, 11.3),
    ("fc", "Gemm", 8, 8, 43.2, 24.8),
)


def full_report() -> Report:
    """Returns a w4a8 build of the digits network, every part filled in."""
    return cast("Report", copy.deepcopy(_full()))


def bare_report() -> Report:
    """Returns a build that was given no image and got no further than the export."""
    report = _full()
    report |= {"backend_reason": None, "recipe": None, "schedule": None, "notes": []}
    report |= {"warnings": [], "accuracy": None, "layers": [], "parity": None, "check": None}
    report |= {"engine": None, "synthesis": None, "finetune": None, "stages": [], "mixed": None}
    report |= {"peak_rss_mib": None, "versions": {}, "config": {}}
    report["rounding"] = {"effort": "none", **dict.fromkeys(CHANGES)}
    report["diagnosis"] = []
    report["model"] = dict.fromkeys(report["model"]) | {"name": "mine.py:net", "input": [3, 32, 32]}
    report["data"] = dict.fromkeys(report["data"])
    report["bytes"] = dict.fromkeys(report["bytes"])
    report["bench"] = dict.fromkeys(report["bench"])
    return cast("Report", report)


def sample_images(n: int = 60, side: int = 32) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Returns ``(n, side, side, 3)`` uint8 rings and waves, a different one for each index."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    images = []
    for index in range(n):
        ring = np.cos(9 * np.hypot(x - 0.3 * math.sin(index), y) + index)
        wave = np.sin((2 + index % 5) * (x + y * (index % 3)))
        images.append(np.stack([ring, wave, ring * wave], axis=-1) * 100 + 128)
    return np.stack(images).astype(np.uint8)


def _full() -> dict[str, Any]:
    return {
        "schema": 1,
        "created": "2026-11-21T06:12:44+00:00",
        "tool_version": "0.1.0",
        "scheme": "w4a8",
        "runs_as": "4-bit weight grid carried in INT8 tensors: the accuracy of 4 bits at the speed "
        "of INT8 (TensorRT has no INT4 convolution).",
        "target": "rtx",
        "backend": "rtx",
        "backend_reason": "No GPU here: the TensorRT-RTX plan is built on the CPU, and accuracy is "
        "measured through ONNX Runtime.",
        "recipe": "fdda",
        "schedule": "reduced schedule: 1,200 of 80,000 generator steps",
        "notes": ["Calibrated on 1,200 real and 400 synthetic images."],
        "warnings": ["2 damaged images were skipped: eval/3/0412.png, eval/7/0033.png."],
        "model": _model(),
        "deploy": _deploy(),
        "data": _data(),
        "accuracy": _accuracy(),
        "bytes": {"fp32_onnx": 706_816, "qdq_onnx": 208_114, "plan": 262_840, "fp32_plan": 741_220},
        "layers": _layers(),
        "parity": {"top1_agreement": 99.83, "relative_l2": 0.0021, "n": 597},
        "check": _check(),
        "engine": _engine(),
        "bench": {
            "gpu": None,
            "cpu": _timing(1.84, "Q/DQ ONNX"),
            "float_cpu": _timing(1.12, "float ONNX"),
        },
        "synthesis": _synthesis(),
        "rounding": rounding(),
        "finetune": _finetune(),
        "diagnosis": diagnosis(),
        "mixed": _mixed(),
        "stages": _stages(),
        "peak_rss_mib": 1_412.6,
        "versions": {"torch": "2.11.0", "tensorrt_rtx": "1.7.1.2", "tensorrt": None},
        "seed": 0,
        "config": {
            "model": {"name": "digits", "weights": None, "input_size": [32, 32]},
            "quantize": {"weight_bits": 4, "act_bits": 8, "first_last_bits": 8, "observer": "mse"},
            "run": {"device": "auto", "seed": 0, "batch_size": 32, "no_cache": False},
        },
    }


def _engine() -> dict[str, Any]:
    return {
        "backend": "TensorRT-RTX",
        "version": "1.7.1.2",
        "status": "built",
        "plan_bytes": 262_840,
        "compute_capabilities": [86, 89, 120],
        "seconds": 0.62,
        "detail": "Built on the CPU. Loading the plan needs a GPU, so it was not run here.",
    }


def _model() -> dict[str, Any]:
    return {
        "name": "digits",
        "origin": "shipped with fdda-deploy",
        "digest": "3f0c9a1be47d52c8aa01773e6f2b9d604c15e8f7a9d0b3c2214f5e6d7c8b9a00",
        "parameters": 175_258,
        "input": [1, 32, 32],
        "classes": 10,
        "batchnorm_layers": 13,
        "preprocessing": {"resize": 32, "crop": 32, "mean": [0.305], "std": [0.378]},
    }


def _deploy() -> dict[str, Any]:
    size = {"height": 32, "width": 32, "channels": 1, "resize": 32}
    numbers = {"mean": [0.305], "std": [0.378], "interpolation": "bilinear"}
    return {
        "preprocessing": {**size, **numbers},
        "class_names": [str(digit) for digit in range(10)],
        "platform": "linux-x86_64",
        "gpu": None,
        "compute_capability": None,
        "batches": [1, 8, 64],
    }


def _data() -> dict[str, Any]:
    digest = "b1946ac92492d2347c6235b4d2611184e1d1a1c5b7e7f5a0c7c8e6b0a9d4f3e2"
    origin = "scikit-learn digits, training split"
    given = {"origin": origin, "n": 1200, "classes_covered": 10, "digest": digest, "recipe": None}
    return {
        "calibration": given,
        "synthetic": {"n": 400, "teacher_top1": 97.25},
        "calibrated_on": {"real": 1200, "synthetic": 400},
        "evaluation": {
            "origin": "scikit-learn digits, held-out split",
            "n": 597,
            "digest": digest,
            "skipped": 2,
        },
    }


def _accuracy() -> dict[str, Any]:
    return {
        "float": _measured(98.83, 97.61, 99.43, "ONNX Runtime, CPU"),
        "quantized": _measured(98.66, 97.39, 99.32, "ONNX Runtime, CPU"),
        "drop": {"mean": 0.17, "low": -0.34, "high": 0.67},
        "agreement": 99.50,
        "torch_quantized": _measured(98.66, 97.39, 99.32, "PyTorch fake quantization, CPU"),
    }


def _measured(top1: float, low: float, high: float, runs_on: str) -> dict[str, Any]:
    return {"top1": top1, "top5": 100.0, "n": 597, "low": low, "high": high, "runs_on": runs_on}


def _layers() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "op": op,
            "weight_bits": weight_bits,
            "act_bits": act_bits,
            "precision": "INT8" if weight_bits == 8 else f"INT8 ({weight_bits}-bit weight grid)",
            "weight_sqnr_db": weight_sqnr_db,
            "output_sqnr_db": output_sqnr_db,
            "reason": "First and last layer keep 8 bits." if weight_bits == 8 else "weighted-input",
        }
        for name, op, weight_bits, act_bits, weight_sqnr_db, output_sqnr_db in _LAYERS
    ]


def _check() -> dict[str, Any]:
    finding = {
        "rule": "T025",
        "severity": "warning",
        "node": "conv1",
        "tensor": "input",
        "value": "Cin = 1",
        "why": "With fewer than 16 input channels a convolution gains nothing from INT8.",
        "repair": "Leave it: it is 0.1 % of the work.",
    }
    note = finding | {"rule": "T034", "severity": "note", "node": "avgpool", "value": None}
    return {"errors": 0, "warnings": 1, "notes": 1, "findings": [finding, note]}


def _timing(median: float, what: str) -> dict[str, Any]:
    factors = {"mean": 1.03, "median": 1.0, "p90": 1.12, "p95": 1.21, "p99": 1.6}
    return {
        "what": f"{what} in ONNX Runtime on the CPU",
        "batch": 1,
        "num_threads": 1,
        "latency_ms": {key: round(median * factor, 3) for key, factor in factors.items()},
        "cov_percent": 6.2 if median > 1.5 else 1.9,
        "unstable": median > 1.5,
        "images_per_s": round(1000 / (median * 1.03), 1),
    }


def _curve(start: float, end: float, n: int, ripple: float) -> list[float]:
    steps = np.arange(n)
    values = end + (start - end) * np.exp(-steps / n * 5) * (1 + ripple * np.sin(steps * 1.7))
    return [round(float(value), 5) for value in values]


def _synthesis() -> dict[str, Any]:
    return {
        "recipe": "fdda",
        "steps": 1200,
        "published_steps": 80_000,
        "num_images": 400,
        "seconds": 58.4,
        "history": {
            "cross entropy": _curve(2.4, 0.08, 120, 0.2),
            "bns alignment": _curve(1.1, 0.21, 120, 0.3),
            "bns distorted": _curve(1.9, 0.66, 120, 0.2),
            "bns centralized": _curve(1.4, 0.12, 120, 0.1),
        },
        "history_every": 10,
        "teacher_top1": 97.25,
        "bns_distance": [round(0.05 + 0.02 * index, 3) for index in range(13)],
        "layer_names": [f"bn{index}" for index in range(13)],
    }


def _finetune() -> dict[str, Any]:
    return {
        "steps": 300,
        "kept": True,
        "metric": "KL(teacher || student) on held-out images, nats",
        "before": 0.00412,
        "after": 0.00287,
        "history": {"distillation": _curve(0.02, 0.006, 60, 0.3)},
        "reason": "The held-out loss fell by 30 %.",
    }


def _mixed() -> dict[str, Any]:
    measured = ((62_300, 3.5, 12, 2, 0), (81_900, 0.5, 9, 5, 0), (120_400, 0.75, 4, 9, 1))
    points = [
        {
            "grid_bytes": grid_bytes,
            "stored_bytes": 176_120 + 8_000 * in_float,
            "drop": drop,
            "layers_at": {"4": low, "8": wide, **({"float": in_float} if in_float else {})},
            "chosen": drop == 0.5,
        }
        for grid_bytes, drop, low, wide, in_float in measured
    ]
    raised = [
        {"name": name, "from_bits": 4, "to_bits": 8, "kl": 0.0031, "sqnr_db": sqnr_db}
        for name, *_, sqnr_db in _LAYERS[9:12]
    ]
    return {
        "max_drop": 0.6,
        "drop": 0.5,
        "metric": "top-1 drop",
        "tune": {"origin": "tune/", "n": 400, "labelled": True},
        "float_bytes": 697_640,
        "num_layers": 14,
        "points": points,
        "raised": raised,
    }


def _stages() -> list[dict[str, Any]]:
    seconds = {"load": 0.8, "statistics": 1.4, "synthesize": 58.4, "quantize": 31.2, "export": 1.9}
    seconds |= {"check": 0.1, "engine": 0.62, "bench": 6.4, "evaluate": 3.7, "report": 2.2}
    return [
        {"name": name, "seconds": value, "cached": name in {"load", "statistics"}}
        for name, value in seconds.items()
    ]
