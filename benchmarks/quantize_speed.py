"""What two details of the quantize command gain, each as a ratio within one run.

    python benchmarks/quantize_speed.py --out benchmarks/results/quantize_speed.json

Covariances of a depthwise layer (960 channels, 3x3, 256 positions) from contiguous rows, the copy
included, against rows as an image holds them; and the ONNX export of mobilenet_v2 (random weights)
with its in-place ReLU6 made functional, against as they are. Medians of rounds in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from fdda_deploy.exporters import float_onnx
from fdda_deploy.pipeline.allocator import keep_freed_memory
from fdda_deploy.pipeline.network import trace
from fdda_deploy.pipeline.quantization.fold import fold_batch_norm
from fdda_deploy.pipeline.quantization.moments import Moments

SHAPE = (3, 224, 224)
CHANNELS, POSITIONS, TAPS = 960, 256, 9


def strided_rows(seed: int) -> Tensor:
    """Returns ``(channels, positions, taps)`` as a view of channels_last patches."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(POSITIONS, TAPS, CHANNELS, generator=generator)
    return patches.relu_().permute(2, 0, 1)


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each, called in turn after one round that is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if index:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def covariances(rounds: int) -> dict[str, float]:
    """Times one batch of one depthwise layer's moments."""
    x, x_hat, moments = strided_rows(0), strided_rows(1), Moments()
    return medians(
        {
            "before": lambda: moments.add(x, x_hat),
            "after": lambda: moments.add(x.contiguous(), x_hat.contiguous()),
        },
        rounds,
    )


def exports(rounds: int) -> dict[str, float]:
    """Times the float export of mobilenet_v2."""
    from torchvision.models import mobilenet_v2

    program = trace(mobilenet_v2().eval(), SHAPE)

    def export() -> None:
        float_onnx.export_float(fold_batch_norm(program), SHAPE)

    def as_they_are() -> None:
        with mock.patch.object(float_onnx, "make_functional"):
            export()

    return medians({"before": as_they_are, "after": export}, rounds)


def main() -> None:
    """Measures both, prints the ratios, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    with torch.no_grad():
        found = {
            "covariances_of_a_depthwise_layer": covariances(4 * arguments.rounds),
            "export_of_mobilenet_v2": exports(arguments.rounds),
        }
    rows = {
        name: {"seconds": seconds, "ratio": seconds["before"] / seconds["after"]}
        for name, seconds in found.items()
    }
    for name, row in rows.items():
        print(f"{name}: {row['ratio']:.1f} times as fast")
    document = {
        "machine": {"cpus": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {"torch": torch.__version__},
        "rounds": arguments.rounds,
        "rows": rows,
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
