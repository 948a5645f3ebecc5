"""Sums over batches that say what one layer's input, output and noise look like."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fdda_deploy.pipeline.quantization.fake_quant import ActivationQuantizer

USUAL = 0.999
"""The percentile beyond which a value is an outlier."""
_SAMPLE = 2**14
"""Values of each batch, evenly spaced, that the percentile is taken of."""
_SUMS = ("signal", "noise", "by_input", "by_weight", "arrived_signal", "arrived_noise")
_INPUT_SUMS = ("count", "square", "negative", "clipped", "clip_error", "error")


@dataclass(frozen=True)
class LayerNumbers:
    """What the sums over one layer come to.

    Noise is a ratio of powers, ``sum (float - quantized)^2 / sum float^2``.

    Attributes:
        noise: Of its output, all layers before it quantized too.
        arrived: Of its input, before its own quantizer.
        by_input: Of its output on the float network's input, with that input alone on its grid.
        by_weight: The same with its weight alone on its grid.
        peak: Largest absolute value of the float input.
        usual: 99.9th percentile of the absolute values.
        rms: Root of the mean square.
        low: Smallest value.
        high: Largest value.
        negative_share: Share of values below 0.
        clipped_share: Share of values beyond the outermost grid points, half a step included.
        clipping_noise: Share of the input's own rounding error that comes from clipping.
        scale: Step of the input's grid; 0 in float.
        channels: Channels of the input.
        widest_channel: Largest of the channels' own absolute maxima.
        median_channel: Median of them.
        lost_channels: Channels that are not 0 in float and always round to 0.
        out_channels: Channels of the output.
        constant_channels: Output channels that never change, as with weights of 0.
        dead_channels: These and the ones that a ReLU behind the layer never lets pass.
    """

    noise: float
    arrived: float
    by_input: float
    by_weight: float
    peak: float
    usual: float
    rms: float
    low: float
    high: float
    negative_share: float
    clipped_share: float
    clipping_noise: float
    scale: float
    channels: int
    widest_channel: float
    median_channel: float
    lost_channels: int
    out_channels: int
    constant_channels: int
    dead_channels: int


class LayerTotals:
    """Adds up one layer's numbers batch by batch."""

    def __init__(
        self, axis: int, quantizer: ActivationQuantizer | None, *, rectified: bool
    ) -> None:
        """Starts at zero.

        Args:
            axis: Channel axis of the layer's input and output.
            quantizer: Of its input; None where that stays in float.
            rectified: Whether a ReLU reads the output.
        """
        self._axis = axis
        self._quantizer = quantizer
        self._rectified = rectified
        self._sums = dict.fromkeys((*_SUMS, *_INPUT_SUMS), 0.0)
        self._samples: list[Tensor] = []
        self._low, self._high = float("inf"), float("-inf")
        self._in_peaks: Tensor | None = None
        self._out_bounds: tuple[Tensor, Tensor] | None = None

    def add_arrived(self, wanted: Tensor, found: Tensor) -> None:
        """Takes in the float and the quantized network's input, before the layer's quantizer."""
        self._sums["arrived_signal"] += _power(wanted)
        self._sums["arrived_noise"] += _power(wanted - found)

    def add_output(
        self, wanted: Tensor, found: Tensor, by_input: Tensor, by_weight: Tensor
    ) -> None:
        """Takes in the output in float, quantized, and with a single operand on its grid."""
        self._sums["signal"] += _power(wanted)
        for name, other in (("noise", found), ("by_input", by_input), ("by_weight", by_weight)):
            self._sums[name] += _power(wanted - other)
        low, high = torch.aminmax(_by_channel(wanted, self._axis), dim=1)
        if self._out_bounds is not None:
            low = torch.minimum(low, self._out_bounds[0])
            high = torch.maximum(high, self._out_bounds[1])
        self._out_bounds = low, high

    def add_input(self, x: Tensor, on_grid: Tensor) -> None:
        """Takes in the float input and the same on its grid."""
        flat = x.flatten()
        self._samples.append(flat[:: -(-len(flat) // _SAMPLE)].abs())
        self._low, self._high = min(self._low, float(x.min())), max(self._high, float(x.max()))
        peaks = _by_channel(x, self._axis).abs().amax(dim=1)
        self._in_peaks = peaks if self._in_peaks is None else torch.maximum(peaks, self._in_peaks)
        self._sums["count"] += x.numel()
        self._sums["square"] += _power(x)
        self._sums["negative"] += int((x < 0).sum())
        qparams = None if self._quantizer is None else self._quantizer.qparams
        if qparams is None:
            return
        scale = float(qparams.scale)
        beyond = (x - x.clamp(qparams.first_step * scale, qparams.last_step * scale)).abs()
        outside = beyond > scale / 2  # nearer than half a step, rounding would have gone there too
        self._sums["clipped"] += int(outside.sum())
        self._sums["clip_error"] += _power(beyond * outside)
        self._sums["error"] += _power(x - on_grid)

    def numbers(self) -> LayerNumbers:
        """Returns what the batches came to."""
        assert self._in_peaks is not None
        assert self._out_bounds is not None
        sums, (low, high) = self._sums, self._out_bounds
        constant = low == high
        dead = (constant | (high <= 0)) if self._rectified else constant
        qparams = None if self._quantizer is None else self._quantizer.qparams
        scale = 0.0 if qparams is None else float(qparams.scale)
        alive = self._in_peaks > 0
        return LayerNumbers(
            noise=_ratio(sums["noise"], sums["signal"]),
            arrived=_ratio(sums["arrived_noise"], sums["arrived_signal"]),
            by_input=_ratio(sums["by_input"], sums["signal"]),
            by_weight=_ratio(sums["by_weight"], sums["signal"]),
            peak=max(abs(self._low), abs(self._high)),
            usual=float(torch.cat(self._samples).double().quantile(USUAL)),
            rms=_ratio(sums["square"], sums["count"]) ** 0.5,
            low=self._low,
            high=self._high,
            negative_share=_ratio(sums["negative"], sums["count"]),
            clipped_share=_ratio(sums["clipped"], sums["count"]),
            clipping_noise=_ratio(sums["clip_error"], sums["error"]),
            scale=scale,
            channels=len(alive),
            widest_channel=float(self._in_peaks.max()),
            median_channel=float(self._in_peaks.median()),
            lost_channels=int((alive & (self._in_peaks < scale / 2)).sum()),
            out_channels=len(dead),
            constant_channels=int(constant.sum()),
            dead_channels=int(dead.sum()),
        )


def _by_channel(x: Tensor, axis: int) -> Tensor:
    """Returns ``(C, everything else)``."""
    return x.movedim(axis, 0).flatten(1)


def _power(x: Tensor) -> float:
    return float(x.double().square().sum())


def _ratio(part: float, whole: float) -> float:
    """Returns ``part / whole``; of nothing, nothing is a part."""
    return part / whole if whole else 0.0
