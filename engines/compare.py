"""Two runners, one feed: how far apart are their outputs?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fdda_deploy.engines.runner import Array, Feed, Runner
from fdda_deploy.errors import EngineError


@dataclass(frozen=True)
class Comparison:
    """How far output ``b`` is from the reference ``a``.

    Attributes:
        max_abs_error: ``max |b - a|``.
        relative_l2: ``||b - a|| / ||a||``; 0 where both are zero, infinite where only ``a`` is.
        cosine: Cosine of the angle between them as vectors; 1 where both are zero.
        top1_agreement: Share of rows with the same largest element, 0 to 1; None for an output
            that is not ``(N, classes)``.
    """

    max_abs_error: float
    relative_l2: float
    cosine: float
    top1_agreement: float | None


def compare(a: Runner, b: Runner, feed: Feed) -> dict[str, Comparison]:
    """Returns one comparison per output name; ``a`` is the reference.

    Raises:
        EngineError: The graphs have other outputs or shapes, an output is not finite, or a
            runner failed.
    """
    outputs_a, outputs_b = a.infer(feed), b.infer(feed)
    if set(outputs_a) != set(outputs_b):
        raise EngineError(
            f"outputs differ: {', '.join(sorted(outputs_a))} of {a.describe()} against "
            f"{', '.join(sorted(outputs_b))} of {b.describe()}. Compare two exports of one network."
        )
    for runner, outputs in ((a, outputs_a), (b, outputs_b)):
        _require_finite(runner, outputs)
    return {name: compare_arrays(name, outputs_a[name], outputs_b[name]) for name in outputs_a}


def compare_arrays(name: str, a: Array, b: Array) -> Comparison:
    """Returns how far ``b`` is from the reference ``a``, both finite and of one shape.

    Raises:
        EngineError: The shapes differ.

    Example:
        >>> compare_arrays("y", np.float32([[3, 4]]), np.float32([[3, 5]])).relative_l2
        0.2
    """
    if a.shape != b.shape:
        raise EngineError(f"output {name}: shapes {a.shape} and {b.shape} cannot be compared.")
    left, right = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    distance, norm_a, norm_b = (float(np.linalg.norm(v)) for v in (right - left, left, right))
    relative = distance / norm_a if norm_a > 0 else (0.0 if distance == 0 else float("inf"))
    cosine = 1.0 if norm_a == norm_b else 0.0  # of zeros; any other is computed
    if norm_a > 0 and norm_b > 0:
        cosine = float(np.dot(left / norm_a, right / norm_b))
    agreement = float(np.mean(a.argmax(1) == b.argmax(1))) if a.ndim == 2 and a.size else None
    worst = float(np.max(np.abs(right - left), initial=0.0))
    return Comparison(worst, relative, float(np.clip(cosine, -1.0, 1.0)), agreement)


def _require_finite(runner: Runner, outputs: dict[str, Array]) -> None:
    for name, array in outputs.items():
        bad = int(np.count_nonzero(~np.isfinite(array)))
        if bad:
            raise EngineError(
                f"output {name} of {runner.describe()}: {bad} of {array.size} values are not "
                "finite. Look for a NaN weight or an overflowing scale with `fdda-deploy check`."
            )
