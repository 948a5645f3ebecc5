"""Channels rescaled so that each one uses the range of its tensor's quantizer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fdda_deploy.errors import CalibrationError, ConfigError
from fdda_deploy.pipeline.quantization.centering import Span, center_channels
from fdda_deploy.pipeline.quantization.channel_groups import (
    ChannelGroup,
    find_channel_groups,
    is_depthwise,
    is_layer,
    parameter_of,
)
from fdda_deploy.pipeline.quantization.clipping import is_worth_a_range
from fdda_deploy.pipeline.quantization.row_factors import MOST, row_factors, tensor_factors


@dataclass(frozen=True)
class EqualizeResult:
    """What was rescaled.

    Attributes:
        num_groups: How many groups of tied tensors.
        tensors: Names of their tensors that a layer reads, in graph order: those to calibrate anew.
    """

    num_groups: int
    tensors: tuple[str, ...]


@torch.no_grad()
def equalize(
    graph_module: fx.GraphModule,
    images_batches: Iterable[Tensor],
    *,
    dense: float = 0.25,
    depthwise: float = 1.0,
    clips: Mapping[str, Tensor] | None = None,
    center: bool = False,
    floats: Collection[str] = (),
    alike: Mapping[str, str] | None = None,
) -> EqualizeResult:
    """Scales the channels of every group of tied tensors, in place, so that they fill its range.

    Channel ``c`` is multiplied by ``a_c = (target / max_c) ** exponent``: rows and biases of the
    layers that make it times ``a_c``, columns of those that read it divided by it, so that the
    network computes what it did, up to rounding. ``max_c`` is its largest absolute value on the
    images, ``target`` the largest ``max_c``. On grids of few steps a channel's largest values are
    not worth theirs: with ``clips``, ``max_c`` is at most where the channel by itself is best
    clipped (`clipping.worthwhile_clips`), and what exceeds it is clipped. This is cross-layer
    equalization (Nagel et al., arXiv 1906.04721, section 4.1) towards the activation quantizer
    instead of the other weight, with the exponent of SmoothQuant (Xiao et al., arXiv 2211.10438,
    eq. 4).

    Ours is what follows. Tensors joined by additions share their factors. Where every reader is
    depthwise, the per-channel scale of its weight takes the inverse at no cost, so the exponent may
    be 1; a dense layer has one scale for all its columns and pays. Where a layer reads what was
    clipped to ``[0, upper]``, the target is ``upper``; any clip in the group, read or pooled first,
    holds ``1 <= a_c <= upper / max_c`` with its own ``max_c``, and so becomes the saturation of
    each channel. Only there can the function change, on an image that exceeds ``max_c``.

    Args:
        graph_module: A float graph with BatchNorm folded. Its parameters are changed: give a copy.
        images_batches: ``(N, C, H, W)`` float32 each, preprocessed, on the graph's device; batches
            of 8 are fastest.
        dense: Exponent in [0, 1] for tensors that a dense layer reads; 0 leaves them alone.
        depthwise: The same for tensors that depthwise layers alone read.
        clips: By node name ``(C,)``, what is worth its steps.
        center: First center the channels of linear tensors on zero (`centering.center_channels`);
            not with ``clips``, which were measured around the old zero.
        floats: Layers left in float, by node name: what they alone read is scaled for the weights
            that make it, which then bear one scale (`row_factors`).
        alike: Which tensors will share a scale, by node name: each is then scaled as a whole.

    Raises:
        ConfigError: An exponent outside [0, 1], or ``center`` with ``clips``.
        CalibrationError: No images, or a tensor that is not finite on them.
    """
    _require_exponents(dense=dense, depthwise=depthwise)
    if center and clips:
        raise ConfigError("center: not with clips, which were measured around the old zero.")
    measured = _measure(graph_module, images_batches, clips or {})
    num_groups, tensors = 0, []
    groups = find_channel_groups(graph_module, measured.shapes)
    if center:
        center_channels(graph_module, groups, measured.spans)
    for group in groups:
        exponent = depthwise if all(map(is_depthwise, group.consumers)) else dense
        if all(layer.name in floats for layer in group.consumers):
            factors = row_factors(graph_module, group, measured.ranges())
        else:
            factors = _factors(group, measured.ranges(), exponent)
        if bool((factors == 1).all()):
            continue
        _rescale(graph_module, group, factors)
        measured.rescale(group, factors)
        num_groups += 1
        tensors += [node.name for node in group.tensors if any(map(is_layer, node.users))]
    for index, factor in tensor_factors(groups, measured.ranges(), alike or {}).items():
        _rescale(graph_module, groups[index], factor)
    return EqualizeResult(num_groups, tuple(tensors))


def _require_exponents(**exponents: float) -> None:
    for name, exponent in exponents.items():
        if not 0 <= exponent <= 1:
            raise ConfigError(f"{name}: {exponent} is not an exponent. Give a number from 0 to 1.")


class _Measure(fx.Interpreter):
    """Runs a graph and keeps shapes, and the range of each channel."""

    def __init__(self, module: fx.GraphModule, clips: Mapping[str, Tensor]) -> None:
        super().__init__(module)
        self.shapes: dict[str, torch.Size] = {}
        self.num_images = 0
        self.spans: dict[str, Span] = {}
        self._worth = dict(clips)

    def ranges(self) -> dict[str, Tensor]:
        """Returns ``max_c`` ``(C,)`` by tensor: the largest value, or what is worth its steps."""
        amax = {name: torch.maximum(high, -low) for name, (low, high) in self.spans.items()}
        # A channel that gave nothing where it was sampled keeps its largest value.
        worth = {
            name: clip.where(clip > 0, amax[name])
            for name, clip in self._worth.items()
            if name in amax
        }
        return amax | {name: amax[name].minimum(clip) for name, clip in worth.items()}

    def rescale(self, group: ChannelGroup, factors: Tensor) -> None:
        """Takes in that the channels of a group were multiplied by ``factors`` ``(C,)``."""
        for name in (node.name for node in group.tensors if node.name in self.spans):
            low, high = self.spans[name]
            self.spans[name] = low * factors, high * factors
            if name in self._worth:
                self._worth[name] = self._worth[name] * factors

    def run_node(self, n: fx.Node) -> Any:  # the interpreter's own signature
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n.name] = result.shape
            if result.ndim >= 2 and is_worth_a_range(n):
                self._take(n, result)
        return result

    def _take(self, node: fx.Node, x: Tensor) -> None:
        rest = [axis for axis in range(x.ndim) if axis != 1]
        low, high = x.amin(rest), x.amax(rest)
        if not bool(low.isfinite().all() & high.isfinite().all()):
            raise CalibrationError(
                f"{node.name}: not finite on the images. Check the weights and the preprocessing."
            )
        seen_low, seen_high = self.spans.get(node.name, (low, high))
        self.spans[node.name] = torch.minimum(seen_low, low), torch.maximum(seen_high, high)


def _measure(
    graph_module: fx.GraphModule, images_batches: Iterable[Tensor], clips: Mapping[str, Tensor]
) -> _Measure:
    walk = _Measure(graph_module, clips)
    for batch in images_batches:
        walk.run(batch)
        walk.num_images += len(batch)
    if not walk.num_images:
        raise CalibrationError("no images to measure channels on. Give at least one batch.")
    return walk


def _factors(group: ChannelGroup, amax: dict[str, Tensor], exponent: float) -> Tensor:
    """Returns ``a_c`` ``(C,)`` float32; 1 for a channel of which the images show nothing."""
    read = [node for node in group.tensors if any(map(is_layer, node.users))]
    largest = torch.stack([amax[node.name] for node in read]).amax(dim=0)
    bounds = [upper for node, upper in group.clips if node in read]
    target = min(bounds, default=float(largest.max()))
    factors = (target / largest.clamp_min(target / MOST)).pow(exponent)
    for node, upper in group.clips:
        # A factor below 1 would let a clipped value through that was cut off before.
        factors = factors.clamp_min(1).minimum(upper / amax[node.name].clamp_min(1e-30))
    return torch.where(largest > 0, factors, 1.0)


def _rescale(graph_module: fx.GraphModule, group: ChannelGroup, factors: Tensor) -> None:
    """Multiplies the rows and biases that make the group; divides the columns that read it."""
    for layer in group.producers:
        weight = parameter_of(graph_module, layer, 1)
        weight.mul_(factors.reshape(-1, *[1] * (weight.ndim - 1)))
        if len(layer.args) > 2 and layer.args[2] is not None:
            parameter_of(graph_module, layer, 2).mul_(factors)
    for layer in group.consumers:
        weight = parameter_of(graph_module, layer, 1)
        axis = 0 if is_depthwise(layer) else 1  # a depthwise weight is (C, 1, kh, kw)
        weight.div_(factors.reshape([-1 if d == axis else 1 for d in range(weight.ndim)]))
