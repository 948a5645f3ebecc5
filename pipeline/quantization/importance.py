"""How much a prediction depends on each position of each layer: Fisher information by position."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx

from fdda_deploy.pipeline.quantization.fisher import Done, Watch, differentiate
from fdda_deploy.pipeline.quantization.patches import LayerShape, Positions, output_rows


def position_importance(
    module: fx.GraphModule,
    shapes: Mapping[str, LayerShape],
    positions: Positions,
    batches: Iterable[Tensor],
    *,
    seed: int = 0,
    done: Done | None = None,
) -> dict[str, Tensor]:
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
        seed: Of the drawn classes.
        done: Called as images are weighed, with how many were.

    Returns:
        By node name ``(groups, samples)`` float16 on the CPU, samples as `Positions.of` orders
        them; 1 is the mean over all positions and groups of an image. Layers that no prediction
        depends on are left out; where a prediction is not finite, all are.
    """
    watch = _Positions(module, shapes, positions)
    if not differentiate(watch, batches, seed=seed, done=done):
        return {}  # whoever measures layers names the one that is to blame
    return {name: torch.cat(parts, dim=1) for name, parts in watch.found.items() if parts}


class _Positions(Watch):
    """Notes by node name the shares of the sampled positions of each layer."""

    def __init__(
        self, module: fx.GraphModule, shapes: Mapping[str, LayerShape], positions: Positions
    ) -> None:
        super().__init__(module)
        self.found: dict[str, list[Tensor]] = {name: [] for name in shapes}
        self._shapes = shapes
        self._positions = positions

    def watches(self, node: fx.Node) -> bool:
        """Whether it is one of the layers."""
        return node.name in self._shapes

    def note(self, name: str, value: Tensor, grad: Tensor) -> None:  # noqa: ARG002  # not the value
        """Keeps the shares ``(groups, samples)`` at the layer's positions, float16 on the CPU."""
        shape = self._shapes[name]
        each = grad[0].numel() // shape.weight[0]
        positions = self._positions.of(name, self.first, self.count, each)
        # Only what is sampled is squared and divided: the maps themselves are millions of numbers.
        energy = output_rows(grad, shape, positions).square_().sum(2)
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
