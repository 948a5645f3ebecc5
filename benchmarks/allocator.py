"""What it gains to keep freed memory: mobilenet_v2 with random weights, float and fake-quantized.

    python benchmarks/allocator.py --out benchmarks/results/allocator.json

Each measurement is a process of its own, with and without `keep_freed_memory` in turn, so that the
ratio holds whatever else the machine does. Images per second: the fastest of the timed batches.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fdda_deploy.exporters.float_onnx import export_float
from fdda_deploy.exporters.placement import place
from fdda_deploy.pipeline.allocator import keep_freed_memory
from fdda_deploy.pipeline.network import trace
from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import GraphMap, convert
from fdda_deploy.pipeline.quantization.fold import fold_batch_norm
from fdda_deploy.quant.scheme import scheme_from_name

SHAPE = (3, 224, 224)
KINDS = ("float", "fake_quantized")


def images_per_second(function: Callable[[Tensor], Tensor], x: Tensor, batches: int) -> float:
    """Returns the rate of the fastest of ``batches`` timed calls, after one that is not."""
    function(x)
    seconds = []
    for _ in range(batches):
        start = time.perf_counter()
        function(x)
        seconds.append(time.perf_counter() - start)
    return len(x) / min(seconds)


@torch.no_grad()
def measure(batch: int, batches: int) -> dict[str, float]:
    """Returns images per second of the float and of the fake-quantized network, in this process."""
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    graph = export_float(fold_batch_norm(trace(mobilenet_v2().eval(), SHAPE)), SHAPE)
    placement = place(
        graph.proto,
        scheme_from_name("w8a8"),
        "trt",
        torch_tensors=graph.fx_from_tensor,
        parameters=graph.parameter_from_initializer,
    )
    names = GraphMap(graph.fx_from_tensor, graph.fx_from_node, graph.parameter_from_initializer)
    network = convert(graph.module, placement, names)
    x = torch.randn(batch, *SHAPE)
    calibrate(network, [x[:4]], observer="minmax")
    functions = dict(zip(KINDS, (graph.module, network), strict=True))
    return {kind: images_per_second(function, x, batches) for kind, function in functions.items()}


def main() -> None:
    """Runs both settings in turn, prints the ratios, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=4, help="timed ones in each process")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", choices=["keep", "return"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        kept = arguments.child == "keep" and keep_freed_memory()
        print(json.dumps({"kept": kept, **measure(arguments.batch, arguments.batches)}))
        return
    sizes = ["--batch", str(arguments.batch), "--batches", str(arguments.batches)]
    rows = []
    for _ in range(arguments.rounds):
        for setting in ("return", "keep"):
            command = [sys.executable, __file__, *sizes, "--child", setting]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    ratios = {
        kind: max(row[kind] for row in rows if row["kept"])
        / max(row[kind] for row in rows if not row["kept"])
        for kind in KINDS
    }
    print("with / without:", {kind: round(ratio, 2) for kind, ratio in ratios.items()})
    document = {
        "machine": {
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "libc": " ".join(platform.libc_ver()),
        },
        "network": "mobilenet_v2, random weights, w8a8",
        "batch": arguments.batch,
        "rows_images_per_second": rows,
        "ratio_with_to_without": ratios,
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
