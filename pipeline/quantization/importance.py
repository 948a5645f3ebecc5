"""How much a prediction depends on each layer's outputs: Fisher information by position, and G."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fdda_deploy.pipeline.quantization.fisher import Done, Watch, differentiate
from fdda_deploy.pipeline.quantization.output_curvature import OutputCurvature
from fdda_deploy.pipeline.quantization.patches import LayerShape, Positions, output_rows


@dataclass(frozen=True)
class Importance:
    """What a prediction owes to the outputs of layers, by node name.

    Attributes:
        shares: ``(groups, samples)`` float16 on the CPU, samples as `Positions.of` orders them; 1
            is the mean over all positions and groups of an image.
        curvature: Of dense layers that were asked for, ``(rows, rows)``; see `OutputCurvature`.
    """

    shares: dict[str, Tensor]
    curvature: dict[str, Tensor]


NO_IMPORTANCE = Importance({}, {})


def output_importance(
    module: fx.GraphModule,
    shapes: Mapping[str, LayerShape],
    positions: Positions,
    batches: Iterable[Tensor],
    *,
    coupled: Collection[str] = (),
    seed: int = 0,
    done: Done | None = None,
) -> Importance:
    """Returns the share of positions of each layer's output in what the network predicts.

    It is their Fisher information (`fisher.differentiate`), ``sum g^2`` over the channels of a
    group: one Hessian serves all rows of a dense layer, and each depthwise filter has its own.

    Ours is that each image counts alike, by dividing by its mean. Unscaled, an image that the
    network is sure of counts nothing, until rounding makes the network unsure of it: on
    mobilenet_v2 that was worse than no importance at all (docs/accuracy.md).

    Args:
        module: A float graph from images ``(N, C, H, W)`` to logits ``(N, classes)``.
        shapes: Of the layers that are asked for, by node name.
        positions: Where they are watched.
        batches: Images on the device of the graph, as many in all as ``positions`` is for.
        coupled: Layers of one group whose curvature is wanted besides.
        seed: Of the drawn classes.
        done: Called as images are weighed, with how many were.

    Returns:
        For the layers that a prediction depends on; for none where a prediction is not finite.
    """
    watch = _Outputs(module, shapes, positions, coupled)
    if not differentiate(watch, batches, seed=seed, done=done):
        return NO_IMPORTANCE  # whoever measures layers names the one that is to blame
    shares = {name: torch.cat(parts, dim=1) for name, parts in watch.found.items() if parts}
    curvature: dict[str, Tensor] = {}
    for name in coupled:
        found = watch.curvatures.pop(name).result()  # a sum and its copy, not those of all layers
        if found is not None:
            curvature[name] = found
    return Importance(shares, curvature)


class _Outputs(Watch):
    """Notes by node name the shares of the sampled positions of each layer, and its curvature."""

    def __init__(
        self,
        module: fx.GraphModule,
        shapes: Mapping[str, LayerShape],
        positions: Positions,
        coupled: Collection[str],
    ) -> None:
        super().__init__(module)
        self.found: dict[str, list[Tensor]] = {name: [] for name in shapes}
        self.curvatures = {name: OutputCurvature() for name in coupled}
        self._shapes = shapes
        self._positions = positions

    def watches(self, node: fx.Node) -> bool:
        """Whether it is one of the layers."""
        return node.name in self._shapes

    def note(self, name: str, value: Tensor, grad: Tensor) -> None:  # noqa: ARG002  # not the value
        """Keeps the shares of the layer's positions, and adds to its curvature."""
        shape = self._shapes[name]
        each = grad[0].numel() // shape.weight[0]
        positions = self._positions.of(name, self.first, self.count, each)
        # Only what is sampled is squared and divided: the maps themselves are millions of numbers.
        rows = output_rows(grad, shape, positions)
        if name in self.curvatures:
            self.curvatures[name].add(rows.reshape(self.count, -1, shape.weight[0]))
        energy = rows.square_().sum(2)
        norm = torch.linalg.vector_norm(grad, dim=tuple(range(1, grad.ndim))).double()
        mean = norm.square() / (shape.groups * each)
        self.found[name].append(_normalized(energy, mean).half().cpu())


def _normalized(energy: Tensor, mean: Tensor) -> Tensor:
    """Returns ``energy`` ``(groups, samples)`` over its image's mean; images of nothing, all 1.

    No position counts more than 1e4 times the mean: float16 ends at 6.5e4.
    """
    by_image = energy.double().reshape(len(energy), len(mean), -1)
    mean = mean[:, None]
    share = torch.where(mean > 0, by_image / mean.clamp_min(torch.finfo(torch.float64).tiny), 1.0)
    return torch.nan_to_num(share, nan=1.0).clamp_max(1e4).flatten(1)
