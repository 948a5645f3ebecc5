"""What predictions depend on: gradients of log p(y) with y drawn from the prediction itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from fdda_deploy.pipeline.allocator import return_freed_memory
from fdda_deploy.pipeline.network import Progress

Done = Callable[[int], None]
AT_ONCE = 4
"""Images that are differentiated together: all their activations are held."""


def counted(progress: Progress | None, total: int, text: str) -> Done:
    """Returns what tells ``progress`` how many of ``total`` images are done, from none on."""

    def done(count: int) -> None:
        if progress is not None:
            progress(count, total, text)

    done(0)
    return done


class Watch(fx.Interpreter):
    """Runs a graph, and shows the gradient behind each node that it is asked to watch.

    Attributes:
        first: How many images came before those that are differentiated.
        count: How many are.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.first, self.count = 0, 0

    def watches(self, node: fx.Node) -> bool:
        """Whether `note` is to be called for a node."""
        raise NotImplementedError

    def note(self, name: str, value: Tensor, grad: Tensor) -> None:
        """Takes what a node gave and the gradient behind it, both of the images of this time."""
        raise NotImplementedError

    def start(self, images: Tensor) -> Tensor:
        """Returns what the graph gives for the next images."""
        self.first, self.count = self.first + self.count, len(images)
        result: Tensor = self.run(images)
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Copies where a view of row-major values is taken of channels_last ones."""
        is_view = target is torch.ops.aten.view.default
        return super().call_function(
            torch.ops.aten.reshape.default if is_view else target, args, kwargs
        )

    def run_node(self, n: fx.Node) -> Any:  # the interpreter's own signature
        """Runs a node and has its gradient noted where it is watched."""
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.requires_grad and self.watches(n):
            value = result.detach()
            result.register_hook(  # type: ignore[no-untyped-call]  # torch leaves it untyped
                lambda grad: self.note(n.name, value, grad.detach())
            )
        return result


def differentiate(
    watch: Watch,
    batches: Iterable[Tensor],
    *,
    seed: int = 0,
    done: Done | None = None,
) -> bool:
    """Differentiates log p(y) of every image, y drawn once from the prediction p.

    Small errors ``dz`` of a tensor cost ``KL = dz^T F dz / 2`` of the prediction, with
    ``F = E_y[g g^T]``, ``g = d log p(y) / dz``: the Fisher information, as block reconstruction
    weighs outputs (BRECQ, arXiv 2102.05426, section 3.3).

    Args:
        watch: Runs a graph from images ``(N, C, H, W)`` to logits ``(N, classes)``.
        batches: Images on the device of the graph.
        seed: Of the drawn classes.
        done: Called after every `AT_ONCE` images, with how many there were.

    Returns:
        Whether all predictions were finite; it ends at the first that is not.
    """
    generator = torch.Generator().manual_seed(seed)
    seen = 0
    with torch.enable_grad():
        for batch in (part for images in batches for part in torch.split(images, AT_ONCE)):
            x = batch.clone().requires_grad_(True)
            log_p = watch.start(x).log_softmax(dim=1)
            if not bool(log_p.isfinite().all()):
                return False
            drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)
            # Towards the images alone: a backward() would gather gradients in the parameters too.
            torch.autograd.grad(log_p.gather(1, drawn.to(log_p.device)).sum(), x)
            seen += len(batch)
            if done is not None:
                done(seen)
    return_freed_memory()  # what autograd held lies between the parts, too small for what follows
    return True
