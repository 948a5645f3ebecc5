"""A convolution or linear layer at sampled output positions: rows of inputs, rows of outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

_ATEN = torch.ops.aten
_SPATIAL_DIMS: dict[object, int] = {
    _ATEN.conv1d.default: 1,
    _ATEN.conv2d.default: 2,
    _ATEN.linear.default: 0,
}
MAX_POSITIONS = 1024
MIN_POSITIONS = 128
_BUDGET = 2**26
_COST_OF_ROUNDING = 16
"""What it costs to round an input, in multiplications."""


@dataclass(frozen=True)
class LayerShape:
    """How a layer reads its input.

    Attributes:
        weight: Shape of the torch weight.
        stride: ``(2,)``, of a convolution along one axis too, which counts as one of height 1.
        padding: ``(2,)``.
        dilation: ``(2,)``.
        groups: 1 for a linear layer.
        spatial_dims: 0 for a linear layer.
    """

    weight: tuple[int, ...]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    spatial_dims: int = 0

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width."""
        height, width = (1, 1, *self.weight[2:])[-2:]
        return height, width

    @property
    def fan_in(self) -> int:
        """Inputs that one output channel reads."""
        return torch.Size(self.weight[1:]).numel()


def layer_shape(node: fx.Node, weight: tuple[int, ...]) -> LayerShape | None:
    """Returns how a graph node reads its input; None for layers other than the three known."""
    dims = _SPATIAL_DIMS.get(node.target)
    if dims is None or node.kwargs:
        return None
    if dims == 0:
        return LayerShape(weight)
    given = [*node.args[3:], *([None] * 4)][:4]
    stride, padding, dilation = (
        _pair(value, dims, fill, neutral)
        for value, fill, neutral in zip(given[:3], (1, 0, 1), (1, 0, 1), strict=True)
    )
    groups = 1 if given[3] is None else cast("int", given[3])
    return LayerShape(weight, stride, padding, dilation, groups, dims)


def num_positions(shape: LayerShape) -> int:
    """Returns how many positions keep one evaluation of the layer near 2^26 multiplications."""
    rows = shape.weight[0]
    cost = shape.fan_in * (rows + shape.groups * _COST_OF_ROUNDING)
    return min(MAX_POSITIONS, max(MIN_POSITIONS, _BUDGET // cost))


def sampled_positions(output: Tensor, shape: LayerShape, generator: torch.Generator) -> Tensor:
    """Returns about `num_positions` flat positions over batch and space, as many of each image.

    Args:
        output: ``(N, C)``, ``(N, ..., C)`` or ``(N, C, ...)``, by the kind of layer.
        shape: The layer's.
        generator: On the CPU.
    """
    count = len(output)
    each = output[0].numel() // shape.weight[0]
    wanted = max(1, num_positions(shape) // count)
    if each <= wanted:
        return torch.arange(count * each)
    drawn = torch.randint(each, (count, wanted), generator=generator)
    return (drawn + each * torch.arange(count)[:, None]).flatten()


class Positions:
    """Where layers are watched: in each image one position of each of as many equal runs.

    Whoever asks, in whatever batches, gets the same positions of an image. Where a run is hardly
    longer than a position, a few are drawn twice.

    Args:
        wanted: How many positions of an image, by layer; 1 or more.
        num_images: In all.
        seed: Of where in its run a position is.
    """

    def __init__(self, wanted: Mapping[str, int], num_images: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._inside = {
            name: torch.rand(num_images, count, generator=generator)
            for name, count in wanted.items()
        }

    def of(self, name: str, first: int, images: int, each: int) -> Tensor:
        """Returns flat positions over batch and space, the images' in turn.

        Args:
            name: The layer.
            first: Which image the batch begins with.
            images: Images in the batch.
            each: Positions in an image; all are taken where there are no more than wanted.
        """
        inside = self._inside[name][first : first + images].double()
        count = inside.shape[1]
        if each <= count:
            return torch.arange(images * each)
        drawn = ((torch.arange(count) + inside) * (each / count)).long().clamp_max(each - 1)
        return (drawn + each * torch.arange(images)[:, None]).flatten()


def output_size(size: torch.Size, shape: LayerShape) -> torch.Size:
    """Returns the shape of the layer's output for an input of ``size``."""
    if not shape.spatial_dims:
        return torch.Size([*size[:-1], shape.weight[0]])
    reach = zip(
        size[2:],
        *(
            pair[-shape.spatial_dims :]
            for pair in (shape.kernel, shape.stride, shape.padding, shape.dilation)
        ),
        strict=True,
    )
    spatial = [
        (n + 2 * pad - dilation * (k - 1) - 1) // step + 1 for n, k, step, pad, dilation in reach
    ]
    return torch.Size([size[0], shape.weight[0], *spatial])


def output_rows(output: Tensor, shape: LayerShape, positions: Tensor) -> Tensor:
    """Returns the outputs ``(groups, positions, channels per group)`` at flat positions."""
    if shape.spatial_dims:
        rows = output.flatten(2).transpose(1, 2).flatten(0, 1)
    else:
        rows = output.flatten(0, -2)
    taken = rows[positions.to(output.device)]
    return taken.reshape(len(taken), shape.groups, -1).transpose(0, 1).contiguous()


def input_rows(x: Tensor, output_size: torch.Size, shape: LayerShape, positions: Tensor) -> Tensor:
    """Returns what each position reads, ``(groups, positions, fan_in)``, in the weight's order.

    Args:
        x: The layer's input.
        output_size: Shape of the layer's output.
        shape: The layer's.
        positions: As `sampled_positions` gives them.
    """
    positions = positions.to(x.device)
    if not shape.spatial_dims:
        return x.flatten(0, -2)[positions][None]
    if shape.spatial_dims == 1:
        x, output_size = x.unsqueeze(2), torch.Size([*output_size[:2], 1, *output_size[2:]])
    pad_h, pad_w = shape.padding
    padded = torch.nn.functional.pad(x, (pad_w, pad_w, pad_h, pad_h))
    height, width = output_size[2:]
    image = positions // (height * width)
    rows, columns = positions // width % height, positions % width
    taps_h = torch.arange(shape.kernel[0], device=x.device) * shape.dilation[0]
    taps_w = torch.arange(shape.kernel[1], device=x.device) * shape.dilation[1]
    y = (rows * shape.stride[0])[:, None, None] + taps_h[:, None]
    z = (columns * shape.stride[1])[:, None, None] + taps_w
    taken: Tensor = padded.permute(0, 2, 3, 1)[image[:, None, None], y, z]  # (positions, kh, kw, C)
    grouped = taken.reshape(*taken.shape[:3], shape.groups, -1).permute(3, 0, 4, 1, 2)
    # Batched products of a strided view take five times as long as of a copy.
    return grouped.reshape(shape.groups, len(taken), -1).contiguous()


def _pair(value: Any, dims: int, fill: int, neutral: int) -> tuple[int, int]:
    """Returns a convolution's argument for height and width."""
    found = [fill] * dims if value is None else [int(item) for item in value]
    found = found * dims if len(found) < dims else found
    height, width = ([neutral] * (2 - dims)) + found
    return height, width
