"""A manifest to test with, and what a machine with a fitting GPU looks like."""

from __future__ import annotations

import copy
from typing import Any

from fdda_deploy.engines.preflight import MachineFacts

DIGEST = "ab" * 32


def sample_manifest(**changes: Any) -> dict[str, Any]:
    """Returns the manifest of a package with graph and TensorRT-RTX plan."""
    return {**copy.deepcopy(_MANIFEST), **changes}


def sample_plan(**changes: Any) -> dict[str, Any]:
    """Returns the plan of that manifest."""
    return {**copy.deepcopy(_MANIFEST["plan"]), **changes}


def tensorrt_plan(**changes: Any) -> dict[str, Any]:
    """Returns a plan of full TensorRT for SM89."""
    facts = {"flavour": "tensorrt", "version": "10.13.2.6", "compute_capabilities": [89]}
    return sample_plan(**{**facts, "portable": False, "built_for": "NVIDIA L4", **changes})


def fitting_machine(**changes: Any) -> MachineFacts:
    """Returns a machine on which both plans load."""
    facts: dict[str, Any] = {
        "platform": "linux-x86_64",
        "gpu": "NVIDIA L4",
        "compute_capability": 89,
        "versions": {"tensorrt": "10.13.2.6", "tensorrt_rtx": "1.7.1.116"},
        "memory_library": "cuda-bindings",
        "onnxruntime": "1.31.1",
    }
    return MachineFacts(**{**facts, **changes})


_ENTRY = {"sha256": DIGEST, "bytes": 10}
_MEASURED = {"top1": 90.0, "top5": 99.0, "n": 597, "low": 87.3, "high": 92.2, "runs_on": "CPU"}
_MANIFEST: dict[str, Any] = {
    "kind": "fdda-deploy package",
    "schema": 1,
    "created": "2026-11-21T12:00:00+00:00",
    "tool_version": "0.1.0",
    "model": {
        "name": "digits",
        "digest": DIGEST,
        "parameters": 1460,
        "classes": 4,
        "scheme": "w4a8",
        "runs_as": "INT8 tensor cores.",
    },
    "inputs": [{"name": "input", "dtype": "float32", "shape": [None, 3, 16, 20]}],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": [None, 4]}],
    "batch": {"min": 1, "opt": 8, "max": 64},
    "preprocessing": {
        "channels": 3,
        "height": 16,
        "width": 20,
        "resize": 24,
        "crop": "center",
        "interpolation": "bilinear",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.25, 0.2, 0.3],
        "channel_order": "RGB",
        "layout": "NCHW",
        "pixel_range": [0, 1],
    },
    "labels": ["ant", "bee", "cat", "dog"],
    "graph": {"file": "model.qdq.onnx", "opset": 21, "ir_version": 10},
    "plan": {
        "file": "engine.plan",
        "flavour": "tensorrt_rtx",
        "version": "1.7.1.116",
        "compute_capabilities": [80, 86, 89, 120],
        "portable": True,
        "built_for": None,
        "flags": [],
        "platform": "linux-x86_64",
    },
    "accuracy": {
        "float": _MEASURED,
        "quantized": _MEASURED,
        "drop": {"mean": 0.0, "low": -1.0, "high": 1.0},
        "agreement": 99.0,
        "interval": "95 %",
        "evaluated_on": {"origin": "digits", "n": 597},
    },
    "latency": {"gpu": "not measured", "cpu": {"latency_ms": {"median": 1.5}}},
    "calibration": {
        "real": 12,
        "synthetic": 16,
        "recipe": "fdda",
        "observer": "mse",
        "effort": "fast",
        "scale_search": "none",
    },
    "probe": {"file": "probe.npz", "n": 4, "runs_on": "CPU"},
    "triton": {"name": "digits", "loads": "graph"},
    "files": {"model.qdq.onnx": _ENTRY, "engine.plan": _ENTRY, "probe.npz": _ENTRY},
}
