"""Tiny calibrated networks with images, and reconstruction of them in well under a second."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import torch
from quant_networks import CPU, float_graph, images, quant_network
from torch import Tensor, fx, nn

from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.reconstruct import reconstruct
from fdda_deploy.pipeline.quantization.reconstruction_settings import (
    ReconstructionResult,
    ReconstructionSettings,
)

SETTINGS = ReconstructionSettings(
    num_steps=30, batch_size=8, rounding_lr=2e-2, scale_lr=1e-3, step_lr=1e-3, bias_lr=2e-3
)
PLENTY = 2**30


def network_of(kind: type[nn.Module], scheme: str = "w3a4", target: str = "trt") -> QuantNetwork:
    """Rounded to nearest."""
    network = quant_network(kind, scheme, target)
    calibrate(network, [images(32)])
    return network


def float_module(kind: type[nn.Module]) -> fx.GraphModule:
    return copy.deepcopy(float_graph(kind).module)


def run(
    network: QuantNetwork, kind: type[nn.Module], num_images: int = 32, **changes: Any
) -> ReconstructionResult:
    """Reconstructs in place; ``changes`` are of the settings or arguments."""
    limit = changes.pop("memory_limit_bytes", PLENTY)
    seed, progress = changes.pop("seed", 0), changes.pop("progress", None)
    targets = changes.pop("targets", None)
    return reconstruct(
        network,
        float_module(kind),
        torch.split(images(num_images), 8),
        settings=dataclasses.replace(SETTINGS, **changes),
        device=CPU,
        seed=seed,
        memory_limit_bytes=limit,
        targets=targets,
        progress=progress,
    )


def state_of(network: QuantNetwork) -> dict[str, Any]:
    """Everything that reconstruction may change, comparable with ``==``."""
    weights = network.integer_weights()
    return {
        "integers": {name: q.tolist() for name, (q, _) in weights.items()},
        "scales": {name: grid.scale.tolist() for name, (_, grid) in weights.items()},
        "biases": {name: v.tolist() for name, v in network.float_parameters().items()},
        "steps": {name: float(g.scale) for name, g in network.activation_qparams().items()},
    }


def integer_moves(before: QuantNetwork, after: QuantNetwork) -> int:
    """The furthest that an integer went."""
    old, new = before.integer_weights(), after.integer_weights()
    moves = (np.abs(old[n][0].astype(int) - new[n][0].astype(int)).max() for n in old)
    return int(max(moves))


def drift(network: QuantNetwork, kind: type[nn.Module], x: Tensor) -> float:
    """Mean squared distance of the predictions from the float network's."""
    with torch.no_grad():
        return float((network(x) - float_graph(kind).module(x)).square().mean())
