r"""LSQ's backward pass in two dot products against the same by masks, in turns in one process.

    python benchmarks/learned_step.py --out benchmarks/results/learned_step.json

One activation of mobilenet_v2 at batch 16, 4 bits. Both must give the same gradients.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fdda_deploy.pipeline.allocator import keep_freed_memory
from fdda_deploy.pipeline.quantization.fake_quant import fake_quant
from fdda_deploy.pipeline.quantization.learned_step import _LsqRounding

SHAPE = (16, 96, 112, 112)
RANGE = (0, 15)


class _ByMasks(torch.autograd.Function):
    """LSQ's gradient as its paper writes it, element by element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.range = qmin, qmax
        return fake_quant(x, scale, qmin, qmax)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, scale = ctx.saved_tensors
        u = x / scale
        bounded = u.clamp(*ctx.range)
        inside = (u > ctx.range[0]) & (u < ctx.range[1])
        of_scale = torch.where(inside, u.round().sub_(u), bounded).mul_(grad).sum()
        return grad * inside, of_scale, None, None


KINDS = {"by masks": _ByMasks, "by dot products": _LsqRounding}


def backward_ms(kind: Any, x: Tensor, grad: Tensor) -> tuple[float, float]:
    """Returns milliseconds of one backward pass, and the gradient of the scale."""
    scale = torch.tensor(0.2, requires_grad=True)
    x.grad = None
    out = kind.apply(x, scale, *RANGE)
    start = time.perf_counter()
    out.backward(grad)
    assert scale.grad is not None
    return 1e3 * (time.perf_counter() - start), float(scale.grad)


def main() -> None:
    """Prints and writes the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator).to(memory_format=torch.channels_last)
    grad = torch.randn(SHAPE, generator=generator).to(memory_format=torch.channels_last)
    x.requires_grad_(True)
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.rounds + 1):
        for name, kind in KINDS.items():
            found[name].append(backward_ms(kind, x, grad))
    times = {name: [ms for ms, _ in pairs[1:]] for name, pairs in found.items()}
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    gradients = {name: pairs[-1][1] for name, pairs in found.items()}
    result = {
        "shape": SHAPE,
        "threads": 1,
        "rounds": arguments.rounds,
        "median_ms": {name: statistics.median(values) for name, values in times.items()},
        "speed_up": {
            "median": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        },
        "gradient_of_scale": gradients,
        "torch": torch.__version__,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
