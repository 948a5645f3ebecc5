"""One unit learned into the network, or put back as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.quantization.activation_store import ActivationStore
from fdda_deploy.pipeline.quantization.blocks import extract
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.reconstruction_settings import (
    BlockOutcome,
    ReconstructionSettings,
)
from fdda_deploy.pipeline.quantization.reconstruction_streams import fitting_batch, through
from fdda_deploy.pipeline.quantization.reconstruction_training import (
    Samples,
    StandIns,
    learn,
    relative_error,
)
from fdda_deploy.pipeline.quantization.reconstruction_units import Unit
from fdda_deploy.pipeline.quantization.weight_reshaping import restore, snapshot
from fdda_deploy.quant.qparams import QParams

MAX_RESTARTS = 1
RESTART_FACTOR = 0.1
"""On all rates, for each restart."""
_Saved = tuple[tuple[dict[str, Tensor], dict[str, QParams]], dict[str, QParams]]


@dataclass(frozen=True)
class Run:
    """What stays the same from unit to unit.

    Attributes:
        network: Calibrated.
        float_module: The graph that it was converted from.
        settings: The schedule.
        device: Where to compute.
        store_bytes: RAM for each store of activations.
        step_bytes: Memory for a step.
        learnable: Submodules and parameters that one unit alone uses.
        targets: Weights before they were rounded, by initializer, in torch layout.
        final: Node of the prediction.
        generators: Of the images of a step, on the CPU, and of QDrop, on the device.
        tick: Called after each step of a first attempt.
    """

    network: QuantNetwork
    float_module: fx.GraphModule
    settings: ReconstructionSettings
    device: torch.device
    store_bytes: int
    step_bytes: int
    learnable: set[str]
    targets: dict[str, Tensor]
    final: str
    generators: tuple[torch.Generator, torch.Generator]
    tick: Callable[[], None]

    def through(
        self, graph: fx.GraphModule, source: str, result: str, stream: ActivationStore
    ) -> ActivationStore:
        """Returns what ``graph`` makes of a stream between two nodes."""
        part = extract(graph, source, result)
        image = stream.batch(0).to(self.device)
        wanted = self.settings.batch_size
        size = fitting_batch(part, image, wanted, self.step_bytes, learn=False)
        return through(part, stream, self.device, self.store_bytes, size)


def reconstructed(run: Run, unit: Unit, samples: Samples) -> BlockOutcome:
    """Learns one unit, at most twice, and keeps what is better than before.

    Args:
        run: Its network is changed in place.
        unit: What to learn.
        samples: What to learn from.

    Raises:
        CalibrationError: Not even one image fits the memory for a step.
    """
    network, settings = run.network, run.settings
    whole = extract(network.graph_module, unit.source, unit.result)
    image = samples.inputs.batch(0).to(run.device)
    size = fitting_batch(whole, image, settings.batch_size, run.step_bytes, learn=True)
    before = after = relative_error(whole, samples, size)
    saved = snapshot(network), network.activation_qparams()
    kept, attempt = False, 0
    try:
        while before > 0 and not kept and attempt <= MAX_RESTARTS:
            found = _attempt(run, unit, samples, size, RESTART_FACTOR**attempt)
            if found is None:
                break
            kept, attempt = found < before, attempt + 1
            if kept:
                after = found
            else:
                _put_back(network, saved)
    except BaseException:
        _put_back(network, saved)
        raise
    restarts = max(0, attempt - 1)
    return BlockOutcome(
        unit.source, unit.result, unit.layers, before, after, kept, restarts, attempt == 0, size
    )


def _attempt(
    run: Run, unit: Unit, samples: Samples, batch_size: int, factor: float
) -> float | None:
    """Learns one unit into the network; returns its error, or None with nothing to learn.

    The error of a solution that is no number is infinite.
    """
    graph = run.network.graph_module
    part = extract(graph, unit.source, unit.result)
    settings, drop = run.settings, run.generators[1]
    stand_ins = StandIns(run.network, part, run.targets, run.learnable, settings, drop)
    if not stand_ins.groups(settings, factor):
        return None
    with stand_ins.biases_free():
        finite = learn(
            part,
            stand_ins,
            samples,
            settings,
            run.generators,
            batch_size=batch_size,
            factor=factor,
            tick=run.tick if factor == 1 else no_tick,
        )
    if not finite:
        return math.inf
    try:
        stand_ins.write_back()
    except CalibrationError:  # the last step took a scale out of float32: divergence, seen late
        return math.inf
    return relative_error(extract(graph, unit.source, unit.result), samples, batch_size)


@torch.no_grad()
def _put_back(network: QuantNetwork, saved: _Saved) -> None:
    """Puts weights, biases and all grids back, to the bit."""
    restore(network, saved[0])
    for tensor, qparams in saved[1].items():
        network.activation_quantizers[tensor].set_qparams(qparams)


def no_tick() -> None:
    """Reports nothing."""
