"""Rows of benchmarks/peers.py for its tests: complete, with figures that are easy to tell apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from peers_measure import packed
from peers_tools import OURS

IMAGES = 40


def row(tool: str, variant: str, **changed: Any) -> dict[str, Any]:
    """Returns a row of network ``n`` at w8a8, with some of its figures changed."""
    right = np.ones(IMAGES, bool)
    found: dict[str, Any] = {
        "network": "n",
        "tool": tool,
        "variant": variant,
        "scheme": "w8a8",
        "calibrated_on": 8,
        "load_average": 0.5,
        "measured_at": "2026-11-22T01:50+00:00",
        "made_with": {"code": "0123456789ab"} if tool == OURS else {"onnxruntime": "1.2"},
        "all_cpu_seconds": 30.0,
        "seconds": 12.0,
        "cpu_seconds": 10.0,
        "peak_mib": 800.0,
        "failed": None,
        "n": IMAGES,
        "float_top1": 100.0,
        "top1": 100.0,
        "drop": {"mean": 0.0, "low": -4.0, "high": 4.0},
        "kl_nats": 0.01,
        "right": packed(right),
        "rtx_accepts": True,
        "rtx_words": "",
        "ort_words": "",
        "plan_bytes": 50,
        "float_plan_bytes": 100,
        "model_bytes": 30,
        "float_bytes": 100,
        "latency": {"ms": 1.0, "float_ms": 2.0, "ratio": 0.5},
    }
    return found | changed


def failed(tool: str, variant: str, words: str) -> dict[str, Any]:
    """Returns a row of which nothing could be measured."""
    base = row(tool, variant)
    keys = ("network", "tool", "variant", "scheme", "calibrated_on", "load_average")
    keys += ("measured_at", "made_with")
    return {key: base[key] for key in keys} | {"all_cpu_seconds": 0.1, "failed": words}


def document(*rows: dict[str, Any]) -> dict[str, Any]:
    """Returns results as the JSON file has them."""
    return {
        "settings": {"images": 8, "threads": 1, "lanes": 2},
        "runs": [{"began": "2026-11-22T01:45+00:00", "rows": len(rows), "seconds": 90}],
        "machine": {"cpu": "a CPU", "cpus": 2},
        "versions": {"fdda-deploy": {"fdda-deploy": "0.1.0"}, "builder": "a builder"},
        "rows": list(rows),
    }
