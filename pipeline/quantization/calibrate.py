"""Calibration: run images through the float graph, then fix every range and every weight scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.network import Progress
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.fp8_ranges import Fp8Observer, fp8_weight_qparams
from fdda_deploy.pipeline.quantization.observers import (
    RangeObserver,
    range_observer,
    weight_qparams,
)
from fdda_deploy.pipeline.quantization.one_scale import one_scale_qparams
from fdda_deploy.pipeline.quantization.ranges import activation_qparams
from fdda_deploy.pipeline.quantization.shared_scales import share_scales
from fdda_deploy.pipeline.quantization.weighed_values import WeighedValues


@torch.no_grad()
def calibrate(
    network: QuantNetwork,
    batches: Iterable[Tensor],
    *,
    observer: str = "mse",
    device: torch.device | None = None,
    num_images: int = 0,
    weighed: Mapping[str, WeighedValues] | None = None,
    progress: Progress | None = None,
) -> int:
    """Fixes all grids of ``network`` in place.

    Args:
        network: As `convert` returns it; its quantizers pass values while ranges are measured.
        batches: ``(N, C, H, W)`` float32, preprocessed; not read where ``weighed`` has all tensors.
        observer: Activation range method (`ranges.OBSERVERS`).
        device: Where to run; the CPU when not given.
        num_images: Total, for progress alone.
        weighed: By node name, values of tensors that need not be observed; how the observer
            chooses, it does on these, each value counting its weight.
        progress: Called with (images done, total, text).

    Returns:
        How many images were read.

    Raises:
        ConfigError: Unknown observer.
        CalibrationError: No image, or an activation or a weight that is not finite (named).
    """
    points = {point.name: point for point in network.placement.activations}
    nodes = network.names.fx_from_tensor
    samples = {
        name: (weighed or {})[nodes[point.tensor]]
        for name, point in points.items()
        if nodes[point.tensor] in (weighed or {}) and point.storage != "fp8"
    }
    observers = {
        name: Fp8Observer(name)
        if points[name].storage == "fp8"
        else range_observer(observer, name, points[name].shifted)
        for name in network.activation_quantizers
        if name not in samples
    }
    calibrate_weights(network)
    network.to(device or torch.device("cpu"))
    quantizers = network.activation_quantizers
    seen = _observe(network, observers, batches, device, num_images, progress) if observers else 0
    for name, quantizer in quantizers.items():
        bits = points[name].num_bits
        if name in samples:
            histogram = samples[name].histogram(points[name].shifted)
            quantizer.set_qparams(activation_qparams(histogram, bits, observer))
        else:
            quantizer.set_qparams(observers[name].qparams(bits))
    share_scales(network)
    return seen


def _observe(
    network: QuantNetwork,
    observers: Mapping[str, RangeObserver],
    batches: Iterable[Tensor],
    device: torch.device | None,
    num_images: int,
    progress: Progress | None,
) -> int:
    """Shows the float values to the observers; returns how many images there were."""
    where = device or torch.device("cpu")
    quantizers = network.activation_quantizers
    kept = {name: quantizer.qparams for name, quantizer in quantizers.items()}
    for name, quantizer in quantizers.items():
        quantizer.observer, quantizer.qparams = observers.get(name), None
    seen = 0
    try:
        for batch in batches:
            network(batch.to(where))
            seen += len(batch)
            if progress is not None:
                progress(seen, num_images, "measuring ranges")
    finally:
        for name, quantizer in quantizers.items():
            quantizer.observer, quantizer.qparams = None, kept[name]
    if seen == 0:
        raise CalibrationError(
            "no calibration image. Give --calib-data, or let images be synthesized."
        )
    return seen


def calibrate_weights(network: QuantNetwork) -> None:
    """Fixes the scale of every weight by its own values: least L_2.4 error per channel or block.

    FP8 weights take ``amax / 448``: floating point loses nothing by covering the largest.

    Raises:
        CalibrationError: A weight that is not finite (named).
    """
    for point in network.placement.weights:
        weight = network.weight_array(point)
        if not np.isfinite(weight).all():
            raise CalibrationError(
                f"{point.initializer}: {int((~np.isfinite(weight)).sum())} of {weight.size} "
                "weights are NaN or infinite. Take another checkpoint."
            )
        if point.storage == "fp8":
            qparams = fp8_weight_qparams(weight, point.axis)
        elif point.one_scale:
            qparams = one_scale_qparams(weight, point.num_bits)
        else:
            qparams = weight_qparams(weight, point.num_bits, point.axis, point.block_size)
        network.set_weight_qparams(point, qparams)
