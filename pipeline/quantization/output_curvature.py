"""What the errors of a layer's channels cost together: Fisher information between channels.

Rounding errors of two channels that whoever reads them takes alike can undo each other. With A the
covariance of a layer's inputs, a change E of its weights costs about ``tr(G E A E^T)``, where
``G = E[g g^T]`` over positions, g the gradient of log p(y) by the layer's outputs:
Kronecker-factored curvature (Martens and Grosse, arXiv 1503.05671), used for rounding by Tseng et
al. (arXiv 2505.22988).
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_ROWS = 2048
"""Layers of more channels are rounded channel by channel: G has the square of them."""
POSITIONS = 32
"""Of an image at least, if it has them, and less than twice as many: neighbours say the same."""
DAMPING = 0.01
"""Share of the mean diagonal added to it, as to that of the inputs: no row is given up for others.
"""


class OutputCurvature:
    """Accumulates G of one layer, each image alike.

    An image gives one draw of y, so of few images G is mostly noise, and rounding would fit it.
    What lies off the diagonal is therefore shrunk by the share of it that is noise, which the
    images' own G_n show: ``sum_n |G_n - G|^2 / (N (N - 1) |G|^2)`` (Ledoit and Wolf 2004, "A
    well-conditioned estimator for large-dimensional covariance matrices", towards the diagonal).
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def add(self, grads: Tensor) -> None:
        """Takes in gradients ``(images, positions, rows)``; images without any count nothing."""
        grads = grads[:, :: max(1, grads.shape[1] // POSITIONS)]
        size = torch.linalg.vector_norm(grads, dim=(1, 2), keepdim=True)
        grads = torch.where(size > 0, grads / size.clamp_min(torch.finfo(size.dtype).tiny), 0.0)
        if self._sum is None:
            self._sum = grads.new_zeros(grads.shape[2], grads.shape[2])
            self._squares = grads.new_zeros((), dtype=torch.float64)
            self._count = self._squares.clone()
        flat = grads.flatten(0, 1)
        self._sum += flat.mT @ flat
        between = (grads @ grads.mT).square().sum(dim=(1, 2))  # |G_n|^2, of fewer products
        diagonal = grads.square().sum(dim=1).square().sum(dim=1)
        self._squares += (between - diagonal).sum()
        self._count += (size > 0).sum()

    def result(self) -> Tensor | None:
        """Returns G ``(rows, rows)`` float32, shrunk; None where no image says anything."""
        if self._sum is None or not bool(self._count) or not bool(self._sum.isfinite().all()):
            return None
        own = self._sum.diagonal()
        off = self._sum - torch.diag(own)
        diagonal = torch.diag(own + DAMPING * own.mean())
        signal, count = float(off.square().sum()), float(self._count)
        if signal == 0 or count == 1:  # one image cannot disagree with itself
            return diagonal
        noise = (count * float(self._squares) / signal - 1) / (count - 1)
        return diagonal + off * (1 - min(1.0, max(0.0, noise)))
