"""Block reconstruction: rounding, scales and biases learned so that each block answers as in float.

AdaRound (arXiv 2004.10568) layer by layer or BRECQ (arXiv 2102.05426) block by block, with QDrop
(arXiv 2203.05740), learned scales (Genie-M, arXiv 2212.04780) and the prediction term of PD-Quant
(arXiv 2212.07048) as settings. Ours: the start from integers that a closed form has already chosen,
robust weights of positions, and that nothing is kept that is not better.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, fx

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.network import Progress
from fdda_deploy.pipeline.quantization.activation_store import ActivationStore
from fdda_deploy.pipeline.quantization.blocks import Block, extract, find_blocks
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.reconstruction_settings import (
    BlockOutcome,
    ReconstructionResult,
    ReconstructionSettings,
)
from fdda_deploy.pipeline.quantization.reconstruction_streams import stored
from fdda_deploy.pipeline.quantization.reconstruction_training import Samples, median_energy
from fdda_deploy.pipeline.quantization.reconstruction_unit import Run, no_tick, reconstructed
from fdda_deploy.pipeline.quantization.reconstruction_units import (
    Unit,
    exclusive_targets,
    units_of,
)

MOST_STORES = 6
"""Stores that live at once: two streams, their successor, and three of a layer inside a block."""


def reconstruct(
    network: QuantNetwork,
    float_module: fx.GraphModule,
    images: Iterable[Tensor],
    *,
    settings: ReconstructionSettings,
    device: torch.device,
    seed: int,
    memory_limit_bytes: int,
    targets: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
) -> ReconstructionResult:
    """Reconstructs every block of ``network`` in place, from the input to the output.

    A block's inputs are those of the quantized network, with all blocks before it done; its target
    is what the float network makes of its own. Starts from the integers as they are: rounded to
    nearest, or in closed form. A block whose loss is no number, or whose error has not fallen, is
    begun again at a tenth of the rates, and then left as it was, with a warning.

    Args:
        network: Calibrated.
        float_module: The graph that it was converted from.
        images: Batches ``(N, C, H, W)`` float32, preprocessed; an `ActivationStore` will do.
        settings: The schedule.
        device: Where to compute.
        seed: Of the images of a step and of QDrop; on one machine and thread count it fixes the
            result.
        memory_limit_bytes: Half for activations between blocks, beyond it on disk; half for a step,
            whose batch is halved until it fits by estimate.
        targets: Weights that the integers were rounded from, by initializer, in torch layout; those
            of ``float_module`` where not given.
        progress: Called with (steps done, steps in all, text).

    Raises:
        CalibrationError: Too few images, a point without a grid, or not even one image fits.
    """
    began = time.monotonic()
    network.activation_qparams()
    network.to(device).requires_grad_(False)
    float_module.to(device)
    blocks = find_blocks(float_module)
    units = [units_of(float_module, block, settings.granularity) for block in blocks]
    flat = [unit for found in units for unit in found]
    run = Run(
        network,
        float_module,
        settings,
        device,
        memory_limit_bytes // (2 * MOST_STORES),
        memory_limit_bytes // 2,
        exclusive_targets(network.graph_module, flat),
        _float_weights(network, float_module, targets or {}),
        blocks[-1].result,
        (torch.Generator().manual_seed(seed), torch.Generator(device).manual_seed(seed)),
        _ticker(progress, len(flat) * settings.num_steps),
    )
    outcomes: list[BlockOutcome] = []
    with ExitStack() as stack:
        floats = quants = stack.enter_context(_enough(images, run))
        count = floats.num_samples
        for block, found in zip(blocks, units, strict=True):
            floats, quants = _advance(run, block, found, (floats, quants), outcomes, stack)
    warnings, seconds = _warnings(outcomes, settings), time.monotonic() - began
    return ReconstructionResult(tuple(outcomes), _left(run), warnings, count, seconds)


def _enough(images: Iterable[Tensor], run: Run) -> ActivationStore:
    """Returns the images, one per batch."""
    store = stored(images, run.store_bytes)
    found, wanted = store.num_samples, run.settings.images_wanted
    if found < wanted:
        store.close()
        raise CalibrationError(
            f"reconstruction has {found} images and wants {wanted} or more. Give more with "
            "--calib-data, let images be synthesized, or round in closed form."
        )
    return store


def _float_weights(
    network: QuantNetwork, float_module: fx.GraphModule, targets: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Returns what each weight was before it was rounded, by initializer, in torch layout."""
    found = {}
    for point in network.placement.weights:
        network.weight_qparams(point)  # says which has none yet
        name, _ = network.names.parameter_from_initializer[point.initializer]
        target = targets.get(point.initializer)
        found[point.initializer] = float_module.get_parameter(name) if target is None else target
    return found


def _advance(
    run: Run,
    block: Block,
    units: tuple[Unit, ...],
    streams: tuple[ActivationStore, ActivationStore],
    outcomes: list[BlockOutcome],
    stack: ExitStack,
) -> tuple[ActivationStore, ActivationStore]:
    """Reconstructs the units of one block and returns both streams behind it."""
    floats, quants = streams
    quant_graph = run.network.graph_module
    done = run.through(run.float_module, block.source, block.result, floats)
    stack.enter_context(done)
    for unit in units:
        with ExitStack() as inner:
            x, x_float, y = quants, floats, done
            if unit.source != block.source:
                x = run.through(quant_graph, block.source, unit.source, quants)
                inner.enter_context(x)
                x_float = run.through(run.float_module, block.source, unit.source, floats)
                inner.enter_context(x_float)
            if unit.result != block.result:
                y = run.through(run.float_module, block.source, unit.result, floats)
                inner.enter_context(y)
            rest = None
            if run.settings.predict > 0:
                rest = extract(run.float_module, unit.result, run.final)
            energy = median_energy(y, unit.channel_axis)
            samples = Samples(x, x_float, y, unit.channel_axis, energy, rest, run.device)
            outcomes.append(reconstructed(run, unit, samples))
    quants_done = run.through(quant_graph, block.source, block.result, quants)
    stack.enter_context(quants_done)
    floats.close()
    quants.close()
    return done, quants_done


def _left(run: Run) -> tuple[str, ...]:
    """Returns the initializers of the weights that no unit has for itself."""
    keys = {child: key for key, child in run.network.graph_module.named_children()}
    quantizers = run.network.weight_quantizers.items()
    return tuple(name for name, child in quantizers if keys[child] not in run.learnable)


def _warnings(outcomes: list[BlockOutcome], settings: ReconstructionSettings) -> tuple[str, ...]:
    """Returns a line on the units that stayed as they were, and one on a smaller batch."""
    stayed = [outcome for outcome in outcomes if not outcome.kept and not outcome.skipped]
    lines = []
    if stayed:
        more = f" and {len(stayed) - 1} more" if len(stayed) > 1 else ""
        lines.append(
            f"{', '.join(stayed[0].layers)}{more}: reconstruction did not lower the error at "
            "either rate; kept as it was. Lower the rates or give more images."
        )
    smallest = min((outcome.batch_size for outcome in outcomes), default=settings.batch_size)
    if smallest < settings.batch_size:
        lines.append(
            f"reconstruction took {smallest} images a step in place of {settings.batch_size} to "
            "stay within the memory limit. Allow more memory for the schedule as it is."
        )
    return tuple(lines)


def _ticker(progress: Progress | None, total: int) -> Callable[[], None]:
    """Returns what counts the steps and reports them."""
    if progress is None:
        return no_tick
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done, total, "reconstructing blocks")

    return tick
