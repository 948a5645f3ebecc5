"""Sensitivity: the damage of each layer at the scheme's width and at 8 bits, the worst named."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fdda_deploy.config import BuildConfig
from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.progress import Progress
from fdda_deploy.pipeline.quantization.calibrate import calibrate, calibrate_weights
from fdda_deploy.pipeline.quantization.closed_form import RoundingSettings, round_network
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.mixed_precision import WIDE_BITS
from fdda_deploy.pipeline.quantization.sensitivity import LayerSensitivity, layer_sensitivity
from fdda_deploy.pipeline.stages.context import Record, RunContext, Stage
from fdda_deploy.pipeline.stages.images import Pool
from fdda_deploy.pipeline.stages.interleaved import untrained_images
from fdda_deploy.pipeline.stages.placing import converted, placement_with
from fdda_deploy.pipeline.stages.rounding import effort_of
from fdda_deploy.pipeline.stages.synthesizing import synthetic_images
from fdda_deploy.pipeline.workspace import Json, atomic_write
from fdda_deploy.quant.qparams import QParams

SENSITIVITY_JSON = "sensitivity.json"
SENSITIVITY_IMAGES = {"small": 128, "large": 32}
"""Images that layers are measured on, up to 64 px and above."""
ROUNDING_IMAGES = 128
_LATER_SETTINGS = ("max_drop", "finetune")
"""Beginnings of the settings that decide nothing before widths are chosen."""

RoundWeights = Callable[[RunContext, QuantNetwork, Tensor], None]
"""Fixes the grid of every weight of a network in place, by images ``(N, C, H, W)`` if it needs any.
"""


def round_weights(context: RunContext, network: QuantNetwork, images: Tensor) -> None:
    """Rounds as the build will: to nearest with effort ``none``, else in closed form.

    But each channel by itself: together costs half as much again, for every network measured.
    """
    calibrate_weights(network)
    if effort_of(context) != "none":
        round_network(
            network,
            context.float_graph.module,
            torch.split(images, 8),
            settings=RoundingSettings(coupled=False),
            device=context.device,
            seed=context.config.run.seed,
        )


ROUND_WEIGHTS: RoundWeights = round_weights
"""How a network is rounded to measure it, here and where widths are chosen."""


@dataclass
class Measuring:
    """Quantized networks of any widths, to measure; each tensor and width is calibrated once.

    Attributes:
        context: The build.
        pool: Its images.
        ranges: Grid by (tensor, bits), as far as they were needed.
    """

    context: RunContext
    pool: Pool
    ranges: dict[tuple[str, int], QParams] = field(default_factory=dict)

    @functools.cached_property
    def _rounding_images(self) -> Tensor:
        return self.pool.sample(ROUNDING_IMAGES)

    def network(self, widths: Mapping[str, int | None] | None, progress: Progress) -> QuantNetwork:
        """Returns the float network quantized to ``widths`` (None: the scheme's), ready to run."""
        placement = placement_with(self.context, widths)
        network = converted(self.context, placement).to(self.context.device)
        points = {point.name: point.num_bits for point in placement.activations}
        if points.items() - self.ranges.keys():
            self._find_ranges(network, progress)
            self.ranges |= {
                (tensor, points[tensor]): grid
                for tensor, grid in network.activation_qparams().items()
            }
        for tensor, quantizer in network.activation_quantizers.items():
            quantizer.set_qparams(self.ranges[tensor, points[tensor]])
        ROUND_WEIGHTS(self.context, network, self._rounding_images)
        return network

    def _find_ranges(self, network: QuantNetwork, progress: Progress) -> None:
        settings, recipe = self.context.config.quantize, self.context.recipe
        counts = self.pool.calibration_counts(settings.calibrate_on)
        batch_size = self.context.config.run.batch_size
        batches: Iterator[Tensor] = self.pool.calibration_batches(counts, batch_size)
        if recipe is not None and recipe.ranges_from == "untrained-generator":
            batches = iter(torch.split(untrained_images(self.context, sum(counts)), batch_size))
        calibrate(
            network,
            batches,
            observer=settings.observer,
            device=self.context.device,
            num_images=sum(counts),
            progress=progress,
        )


def measuring(context: RunContext) -> Measuring:
    """Returns what measures networks of this build."""
    pool = Pool(context.calibration, synthetic_images(context), context.config.run.seed)
    return Measuring(context, pool)


def image_inputs(context: RunContext) -> dict[str, Json]:
    """Returns what decides a network that is measured, for the cache key of a stage."""
    images, settings = context.calibration, asdict(context.config.quantize)
    return {
        **context.keys("load", "synthesize"),
        "images": None if images is None else images.digest,
        "effort": effort_of(context),
        "settings": {k: v for k, v in settings.items() if not k.startswith(_LATER_SETTINGS)},
        "target": context.target,
        "seed": context.config.run.seed,
        "device": context.device.type,
    }


def require_layers_to_rank(config: BuildConfig) -> None:
    """Refuses, before anything runs, to rank the layers of a scheme that quantizes none.

    Raises:
        ConfigError: fp16.
    """
    if config.quantize.scheme.numbers == "fp16":
        raise ConfigError(
            "sensitivity --scheme fp16: FP16 quantizes no layer, so there is none to rank. Take "
            "--scheme w8a8, fp8 or another; `build --scheme fp16` says what FP16 costs in all."
        )


def layers_in(record: Mapping[str, Json], key: str) -> list[LayerSensitivity]:
    """Returns the ``narrow`` or the ``wide`` layers of a sensitivity record."""
    plain = json.loads(json.dumps(record[key]))
    return [LayerSensitivity(**{**layer, "nodes": tuple(layer["nodes"])}) for layer in plain]


def _wanted(context: RunContext) -> bool:
    return context.config.quantize.max_drop is not None or context.until == SENSITIVITY.name


def _inputs(context: RunContext) -> dict[str, Json]:
    wanted = _wanted(context)
    return {"wanted": wanted, **(image_inputs(context) if wanted else {})}


def _run(context: RunContext, folder: Path, progress: Progress) -> Record:
    if not _wanted(context):
        return {"narrow": None}
    networks = measuring(context)
    count = SENSITIVITY_IMAGES["small" if context.small_images else "large"]
    images = networks.pool.sample(count)
    network = networks.network(None, progress)
    narrow = wide = _measured(context, network, images, progress)
    others = network.float_parameters().values()
    if any(layer.weight_bits < WIDE_BITS for layer in narrow):
        widths = dict.fromkeys((node for layer in narrow for node in layer.nodes), WIDE_BITS)
        wide = _measured(context, networks.network(widths, progress), images, progress)
    record: dict[str, Json] = {
        "scheme": context.config.quantize.scheme.name,
        "target": context.target,
        "num_images": len(images),
        "rest_bytes": int(sum(value.nbytes for value in others)),
        "narrow": [_plain(layer) for layer in narrow],
        "wide": [_plain(layer) for layer in wide],
    }
    atomic_write(folder / SENSITIVITY_JSON, json.dumps({"schema": 1, **record}, indent=1))
    return record


def _measured(
    context: RunContext, network: QuantNetwork, images: Tensor, progress: Progress
) -> list[LayerSensitivity]:
    module = context.float_graph.module
    return layer_sensitivity(network, module, images, device=context.device, progress=progress)


def _plain(layer: LayerSensitivity) -> dict[str, Json]:
    return {**asdict(layer), "nodes": list(layer.nodes)}


SENSITIVITY = Stage("sensitivity", _inputs, _run, {SENSITIVITY_JSON: SENSITIVITY_JSON})
