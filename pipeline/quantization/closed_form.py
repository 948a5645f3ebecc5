"""Every weight of a network rounded in closed form, from input to output, each layer once.

A layer is rounded for the inputs that the already rounded layers before it give, towards what the
float layer computes from the float inputs; then its bias takes up what is left of the mean.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.network import Progress
from fdda_deploy.pipeline.quantization.blocks import Block
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.fisher import counted
from fdda_deploy.pipeline.quantization.importance import (
    NO_IMPORTANCE,
    Importance,
    output_importance,
)
from fdda_deploy.pipeline.quantization.integer_weights import can_couple, fewest_lost
from fdda_deploy.pipeline.quantization.moments import LayerMoments, Moments
from fdda_deploy.pipeline.quantization.one_scale import grid_with
from fdda_deploy.pipeline.quantization.output_curvature import MOST_ROWS
from fdda_deploy.pipeline.quantization.patches import Positions, input_rows, output_size
from fdda_deploy.pipeline.quantization.rounding_layers import RoundingLayer, rounding_layers
from fdda_deploy.pipeline.quantization.second_order import damped, mean_shift, target_weights
from fdda_deploy.pipeline.quantization.streams import Streams, streamed

MEMORY_LIMIT_BYTES = 2**31
_ENOUGH_SAMPLES = 8192
_SAMPLES_PER_INPUT = 64
"""A layer of few inputs has few covariances to find, and depthwise ones cost the most to watch."""


@dataclass(frozen=True)
class RoundingSettings:
    """How weights are rounded.

    Attributes:
        samples: Output positions that a layer is watched at, over all images; where that is more
            than 64 for each input that a channel reads, fewer, but not below 8192.
        damping: Share of the mean variance added to every variance (arXiv 2210.17323, section 3.3).
        ridge: How strongly the float weights hold the targets, in units of the mean variance.
        sweeps: Rounds of coordinate descent.
        batch_size: Images at a time.
        correct_means: Give each bias what rounding took from the mean output.
        sequential: Make good in each layer what the layers before it lost.
        importance: Weigh positions by how much the prediction depends on them.
        coupled: Below 8 bits, have the channels of a dense layer make good each other's errors, by
            what the prediction owes to them together. Nothing without ``importance``.
        max_fan_in: Layers that read more inputs at once keep their rounding: the covariances take
            24 bytes times its square while they are solved.
    """

    samples: int = 32000
    damping: float = 0.01
    ridge: float = 3.0
    sweeps: int = 4
    batch_size: int = 8
    correct_means: bool = True
    sequential: bool = True
    importance: bool = True
    coupled: bool = True
    max_fan_in: int = 5120


@dataclass(frozen=True)
class LayerRounding:
    """What the rounding of one layer costs, in parts of what having no weights would.

    ``sum e^T H e`` over its rows, or ``tr(G E H E^T)`` where they are rounded together; e is what
    rounding takes from the weights that the layer was to have, which make good earlier losses.

    Attributes:
        initializer: ONNX name of the weight.
        before: With the integers and scales that it had.
        after: With those it got.
    """

    initializer: str
    before: float
    after: float


@dataclass(frozen=True)
class RoundingResult:
    """What `round_network` did.

    Attributes:
        layers: Rounded, in graph order.
        left: Pairs of (initializer, reason) of the weights that stay as they were.
        bytes_spilled: Activations that went to disk, in all.
        seconds: Wall time.
    """

    layers: tuple[LayerRounding, ...]
    left: tuple[tuple[str, str], ...]
    bytes_spilled: int
    seconds: float


@torch.no_grad()
def round_network(
    network: QuantNetwork,
    float_module: fx.GraphModule,
    images: Iterable[Tensor],
    *,
    settings: RoundingSettings,
    device: torch.device,
    seed: int = 0,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    resident_limit_bytes: int | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> RoundingResult:
    """Rounds the weights of a calibrated network in place, and corrects its biases.

    The float weights and biases are those of ``float_module``, so rounding twice is rounding once.
    A weight becomes scale times integer. In layers where inputs have scales of their own (blocks of
    INT4) the scales stay. No layer ends with a larger loss than it began with, nor does a row that
    is rounded by itself.

    Args:
        network: Calibrated.
        float_module: The float graph that ``network`` was converted from.
        images: Batches ``(N, C, H, W)`` float32, preprocessed; read once.
        settings: How.
        device: Where to run.
        seed: Of the sampled positions.
        memory_limit_bytes: RAM for activations between blocks; what is beyond it goes to disk.
        resident_limit_bytes: As `Streams` has it.
        folder: Where on disk; the system's temporary folder when not given.
        progress: Called with (images weighed, images, text), then (layers done, layers, text).

    Raises:
        CalibrationError: No image, a grid that is missing, inputs of a layer that are not finite,
            or activations that fit neither in memory nor on disk.
    """
    started = time.perf_counter()
    network.to(device)
    float_module.to(device)
    layers, left = rounding_layers(network, float_module, settings.max_fan_in)
    rounded: list[LayerRounding] = []
    with Streams(
        images,
        batch_size=settings.batch_size,
        device=device,
        limit_bytes=memory_limit_bytes,
        folder=folder,
        resident_limit_bytes=resident_limit_bytes,
    ) as streams:
        if not streams.num_samples:
            raise CalibrationError("no image to round weights on. Give --calib-data.")
        positions = _positions(layers, settings, streams.num_samples, seed)
        importance = NO_IMPORTANCE
        if settings.importance and layers:
            told = counted(progress, streams.num_samples, "weighing positions")
            shapes = {name: layer.shape for name, layer in layers.items()}
            floats = (x for x, _ in streams)
            coupled = _coupled(network, layers) if settings.coupled else []
            importance = output_importance(
                float_module, shapes, positions, floats, coupled=coupled, seed=seed, done=told
            )
        walk = _Walk(network, float_module, settings, positions, importance)
        for block in streams.blocks(float_module):
            for name in block.layers:
                if name in layers:
                    rounded.append(walk.round_layer(name, layers[name], block, streams))
                    if progress is not None:
                        progress(len(rounded), len(layers), "rounding weights")
            if len(rounded) == len(layers):
                break
            streams.advance(block, float_module, network.graph_module)
        spilled = streams.bytes_spilled
    return RoundingResult(tuple(rounded), tuple(left), spilled, time.perf_counter() - started)


class _Walk:
    """What rounding a layer needs that stays the same from layer to layer."""

    def __init__(
        self,
        network: QuantNetwork,
        float_module: fx.GraphModule,
        settings: RoundingSettings,
        positions: Positions,
        importance: Importance,
    ) -> None:
        self._network = network
        self._float = float_module
        self._settings = settings
        self._positions = positions
        self._importance = importance

    def round_layer(
        self, name: str, layer: RoundingLayer, block: Block, streams: Streams
    ) -> LayerRounding:
        """Rounds the weight of one node in place and corrects the bias behind it."""
        settings, network, point = self._settings, self._network, layer.point
        moments = self._measure(name, layer, block, streams)
        weight = self._float.get_parameter(layer.parameter)
        rows = weight.reshape(layer.shape.groups, weight.shape[0] // layer.shape.groups, -1)
        target = target_weights(rows, moments, settings.ridge) if settings.sequential else rows
        hessian = damped(moments.cov_xhat, settings.damping)
        qparams = network.weight_qparams(point)
        scale = network.weight_quantizers[point.initializer].scale.expand_as(weight)
        scale = scale.reshape(rows.shape)
        curvature = self._importance.curvature.pop(name, None)
        found = fewest_lost(target, hessian, curvature, scale, qparams, settings.sweeps)
        integers, step = found.integers, found.step
        if qparams.block_size is None:
            network.set_weight_qparams(point, grid_with(qparams, step))
        network.weight(point).copy_((integers * step).reshape(weight.shape))
        if settings.correct_means and layer.bias is not None:
            shift = mean_shift(rows, integers * step, moments).flatten()
            bias = self._float.get_parameter(layer.bias)
            network.graph_module.get_parameter(layer.bias).copy_(bias + shift)
        return LayerRounding(point.initializer, found.before, found.after)

    def _measure(
        self, name: str, layer: RoundingLayer, block: Block, streams: Streams
    ) -> LayerMoments:
        """Returns the moments of what the layer reads in both networks, at the same positions."""
        part = streamed(self._float, block.source, layer.source)
        part_hat = streamed(self._network.graph_module, block.source, layer.source_hat)
        moments = Moments()
        importance, first, taken = self._importance.shares.pop(name, None), 0, 0
        for value, value_hat in streams:
            x, x_hat = part(value), part_hat(value_hat)
            size = output_size(x.shape, layer.shape)
            each = size.numel() // layer.shape.weight[0] // len(value)
            positions = self._positions.of(name, first, len(value), each)
            end = taken + len(positions)
            shares = None if importance is None else importance[:, taken:end]
            first, taken = first + len(value), end
            moments.add(
                input_rows(x, size, layer.shape, positions),
                input_rows(x_hat, size, layer.shape, positions),
                shares,
            )
        found = moments.result()
        if not bool(found.cov_x_xhat.isfinite().all() & found.cov_xhat.isfinite().all()):
            raise CalibrationError(
                f"{layer.point.initializer}: the inputs of its layer are not finite. "
                "Check the images and the weights before it."
            )
        return found


def _coupled(network: QuantNetwork, layers: Mapping[str, RoundingLayer]) -> list[str]:
    """Returns the layers whose rows are rounded together: dense, narrow, each with its scale."""
    return [
        name
        for name, layer in layers.items()
        if layer.shape.groups == 1
        and 1 < layer.shape.weight[0] <= MOST_ROWS
        and can_couple(network.weight_qparams(layer.point))
    ]


def _positions(
    layers: Mapping[str, RoundingLayer], settings: RoundingSettings, num_images: int, seed: int
) -> Positions:
    def wanted(layer: RoundingLayer) -> int:
        enough = max(_ENOUGH_SAMPLES, _SAMPLES_PER_INPUT * layer.shape.fan_in)
        return max(1, min(settings.samples, enough) // num_images)

    return Positions({name: wanted(layer) for name, layer in layers.items()}, num_images, seed)
