"""Scales moved by a hair, so that no common value of a narrow grid rounds on a knife's edge.

A convolution of few-bit integers has few distinct results: the same sum comes back at thousands of
pixels. Where scale and bias put such a sum within a float32 rounding error of a tie, its rounding
depends on the order of additions, which differs between torch, ONNX Runtime and TensorRT, and all
those pixels flip together: one step is 1/15 of the range at 4 bits.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.fake_quant import ActivationQuantizer
from fdda_deploy.quant.qparams import QParams

WINDOW_STEPS = 2.0**-17
"""Distance to a tie, in steps, that two orders of addition can cross; ten times what was seen."""
NUDGE = 2.0**-15
"""One nudge takes the first tie, half a step, two windows away, and those above it further."""
NUM_CANDIDATES = 16
"""The scale grows by at most 15 nudges, 0.05 %: the range still covers what it covered."""

_SPLIT = 16
"""Images at a time, so that the temporaries stay small."""


@torch.no_grad()
def settle_ties(network: QuantNetwork, images: Tensor, device: torch.device) -> int:
    """Moves scales below 8 bits off ties, in place, from input to output; returns how many moved.

    Wider grids are left alone: their values do not come back often enough to gather on a tie.

    Args:
        network: Calibrated, with the weights and biases that will be exported.
        images: ``(N, C, H, W)`` float32, preprocessed.
        device: Where to run.
    """
    walk = _Settle(network.to(device).graph_module)
    walk.run(images.to(device))
    return walk.num_moved


class _Settle(fx.Interpreter):
    """Runs the network; each narrow quantizer is settled on the settled values before it."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.num_moved = 0
        self._seen: set[str] = set()

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Settles the quantizer at ``target``, once, then runs it."""
        module = self.fetch_attr(target)
        if isinstance(module, ActivationQuantizer) and target not in self._seen:
            self._seen.add(target)
            qparams = module.qparams
            if qparams is not None and qparams.num_bits < 8:
                settled = _settled(args[0], qparams)
                self.num_moved += settled is not qparams
                module.set_qparams(settled)
        return super().call_module(target, args, kwargs)


def _settled(x: Tensor, qparams: QParams) -> QParams:
    """Returns the grid whose scale leaves the fewest values of ``x`` next to a tie."""
    x = _within_reach(x, qparams)
    best, fewest = qparams, _next_to_a_tie(x, qparams)
    for index in range(1, NUM_CANDIDATES):
        if fewest == 0:
            break
        scale = np.asarray(qparams.scale * np.float32(1 + index * NUDGE), np.float32)
        candidate = dataclasses.replace(qparams, scale=scale)
        count = _next_to_a_tie(x, candidate)
        if count < fewest:
            best, fewest = candidate, count
    return best


def _within_reach(x: Tensor, qparams: QParams) -> Tensor:
    """Returns the few values of ``x`` that lie next to a tie under at least one candidate."""
    kept = []
    for part in torch.split(x, _SPLIT):
        steps = part / float(qparams.scale)
        ties = steps.floor().add_(0.5)
        reach = ties.abs().mul_(NUM_CANDIDATES * NUDGE).add_(WINDOW_STEPS)
        kept.append(part[steps.sub_(ties).abs_() < reach])
    return torch.cat(kept)


def _next_to_a_tie(x: Tensor, qparams: QParams) -> int:
    """Returns how many values of ``x`` lie within the window around a tie inside the range."""
    steps = x / float(qparams.scale)
    near = (steps - steps.floor() - 0.5).abs() < WINDOW_STEPS
    return int((near & (steps > qparams.first_step) & (steps < qparams.last_step)).sum())
