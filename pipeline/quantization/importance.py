"""How much a prediction depends on each position of each layer: Fisher information by position."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fdda_deploy.pipeline.allocator import return_freed_memory
from fdda_deploy.pipeline.quantization.patches import LayerShape, Positions, output_rows

AT_ONCE = 4
"""Images that are differentiated together: all their activations are held."""


def position_importance(
    module: fx.GraphModule,
    shapes: Mapping[str, LayerShape],
    positions: Positions,
    batches: Iterable[Tensor],
    *,
    seed: int = 0,
    weighed: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Returns the share of positions of each layer's output in what the network predicts.

    Small errors ``dz`` of a layer's output cost ``KL = dz^T F dz / 2`` of the prediction, with
    ``F = E_y[g g^T]``, ``g = d log p(y) / dz`` and y drawn from the prediction p itself: the Fisher
    information, as block reconstruction weighs outputs (BRECQ, arXiv 2102.05426, section 3.3). Here
    y is drawn once an image, and the importance of a position is ``sum g^2`` over the channels of a
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
        weighed: Called after every `AT_ONCE` images, with how many were weighed.

    Returns:
        By node name ``(groups, samples)`` float16 on the CPU, samples as `Positions.of` orders
        them; 1 is the mean over all positions and groups of an image. Layers that no prediction
        depends on are left out; where a prediction is not finite, all are.
    """
    generator = torch.Generator().manual_seed(seed)
    watch = _Watch(module, shapes, positions)
    found: dict[str, list[Tensor]] = {name: [] for name in shapes}
    done = 0
    with torch.enable_grad():
        for batch in (part for images in batches for part in torch.split(images, AT_ONCE)):
            x = batch.clone().requires_grad_(True)
            log_p = watch.start(x).log_softmax(dim=1)
            if not bool(log_p.isfinite().all()):
                return {}  # whoever measures layers names the one that is to blame
            drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)
            # Towards the images alone: a backward() would gather gradients in the parameters too.
            torch.autograd.grad(log_p.gather(1, drawn.to(log_p.device)).sum(), x)
            for name, parts in found.items():
                if name in watch.seen:
                    parts.append(watch.seen[name])
            done += len(batch)
            if weighed is not None:
                weighed(done)
    joined = {name: torch.cat(parts, dim=1) for name, parts in found.items() if parts}
    found.clear()
    return_freed_memory()  # what autograd held lies between the parts, too small for what follows
    return joined


class _Watch(fx.Interpreter):
    """Runs a graph; in its backward pass ``seen`` takes the importance of layers by node name."""

    def __init__(
        self, module: fx.GraphModule, shapes: Mapping[str, LayerShape], positions: Positions
    ) -> None:
        super().__init__(module)
        self.seen: dict[str, Tensor] = {}
        self._shapes = shapes
        self._positions = positions
        self._first, self._count = 0, 0

    def start(self, images: Tensor) -> Tensor:
        """Returns what the graph gives for the next images."""
        self.seen.clear()
        self._first, self._count = self._first + self._count, len(images)
        result: Tensor = self.run(images)
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Copies where a view of row-major values is taken of channels_last ones."""
        is_view = target is torch.ops.aten.view.default
        return super().call_function(
            torch.ops.aten.reshape.default if is_view else target, args, kwargs
        )

    def run_node(self, n: fx.Node) -> Any:  # the interpreter's own signature
        result = super().run_node(n)
        if n.name in self._shapes and isinstance(result, Tensor) and result.requires_grad:

            def note(grad: Tensor) -> None:
                self.seen[n.name] = self._sampled(n.name, grad.detach())

            result.register_hook(note)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return result

    def _sampled(self, name: str, grad: Tensor) -> Tensor:
        """Returns the shares ``(groups, samples)`` at the layer's positions, float16 on the CPU."""
        shape = self._shapes[name]
        each = grad[0].numel() // shape.weight[0]
        positions = self._positions.of(name, self._first, self._count, each)
        # Only what is sampled is squared and divided: the maps themselves are millions of numbers.
        energy = output_rows(grad, shape, positions).square_().sum(2)
        norm = torch.linalg.vector_norm(grad, dim=tuple(range(1, grad.ndim))).double()
        mean = norm.square() / (shape.groups * each)
        return _normalized(energy, mean).half().cpu()


def _normalized(energy: Tensor, mean: Tensor) -> Tensor:
    """Returns ``energy`` ``(groups, samples)`` over its image's mean; images of nothing, all 1.

    No position counts more than 1e4 times the mean: float16 ends at 6.5e4.
    """
    by_image = energy.double().reshape(len(energy), len(mean), -1)
    mean = mean[:, None]
    share = torch.where(mean > 0, by_image / mean.clamp_min(torch.finfo(torch.float64).tiny), 1.0)
    return torch.nan_to_num(share, nan=1.0).clamp_max(1e4).flatten(1)
