"""What the proof of a repair asks of each grid: of activations by their values, of weights exactly.

An activation's new grid keeps the old range, in the steps that this takes; to share a scale it may
be wider, never narrower. A weight's new grid holds every number to half a step.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fdda_deploy.engines.runner import Array
from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.repair.float_twin import Rounded
from fdda_deploy.exporters.repair.probes import Probe
from fdda_deploy.exporters.repair.shared_scales import MOST_WITHOUT_A_KERNEL

MEAN_SLACK = 0.5
"""Steps that the mean of a tensor may be off what its biases were to add; a wrong zero-point is off
by one or more."""
GRID_SLACK = 1.8
"""How much more a new grid may round than its wider steps explain: on few values up to sqrt(3)."""
STEP_SLACK = 0.02
"""How far a new grid's step may be from what keeps the range: UINT8 has 255 steps, INT8 254."""
FLOAT_SLACK = 1e-3
"""Steps that float32 may add to half of one: the largest weight is 127 steps."""


def over_due(probe: Probe, floats: Mapping[str, Array]) -> float:
    """Returns the root mean square error of the new grid over the one that is due.

    Args:
        probe: A tensor whose grid changed.
        floats: Outputs of the float network before.
    """
    rounding = max(float(floats[probe.old]), probe.step**2 / 12)
    due = probe.widening * max(1.0, probe.widened)
    return float(np.sqrt(float(floats[probe.new]) / rounding)) / due


def require_grid(probe: Probe, floats: Mapping[str, Array]) -> None:
    """Holds a new grid to the old range.

    Args:
        probe: A tensor whose grid changed.
        floats: Outputs of the float network before.

    Raises:
        ExportError: Its steps are not what keeps the range, or what sharing a scale may make of
            them; or it rounds by more than they explain.
    """
    over = over_due(probe, floats)
    most = MOST_WITHOUT_A_KERNEL if probe.coarsened else 1.0
    if 1 - STEP_SLACK <= probe.widened <= most * (1 + STEP_SLACK) and over <= GRID_SLACK:
        return
    raise ExportError(
        f"tensor {probe.tensor}: the steps of its new grid are {probe.widened:.3g} times what "
        f"keeps the range{f' (at most {most})' if probe.coarsened else ''}, and round by {over:.3g}"
        f" times what they should (at most {GRID_SLACK}); nothing is written. Report this file, or "
        "accept the distance of the outputs with --tolerance."
    )


def require_shift(probe: Probe, floats: Mapping[str, Array], again: Mapping[str, Array]) -> None:
    """Holds a tensor whose zero-point biases took up to what that stands for.

    Args:
        probe: A tensor whose grid changed.
        floats: Outputs of the float network before.
        again: Of the repaired graph's.

    Raises:
        ExportError: Its mean moved by something else.
    """
    if not probe.shift:
        return
    before, after = probe.means
    moved = float(again[after]) / probe.factor - float(floats[before])
    if abs(moved - probe.shift) <= MEAN_SLACK * probe.step:
        return
    raise ExportError(
        f"tensor {probe.tensor}: its mean moved by {moved:.3g} and its zero-point stands for "
        f"{probe.shift:.3g}, so biases took up another; nothing is written. Report this file, or "
        "accept the distance of the outputs with --tolerance."
    )


def weight_moved(rounded: Rounded, wanted: Array, found: Array, allowed: float) -> float:
    """Returns the farthest that a number of a layer's weight moved, in steps of its new grid.

    Args:
        rounded: The layer.
        wanted: Its weight as it was, times `Rounded.factor`.
        found: As it is.
        allowed: Steps that each number may move.

    Raises:
        ExportError: One moved farther, or the step is larger than the largest number over 127.
    """
    largest = float(np.abs(wanted).max(initial=0.0))
    if wanted.shape != found.shape or not rounded.step > 0:
        moved = np.inf
    else:
        moved = float(np.abs(found - wanted).max(initial=0.0)) / rounded.step
    if moved <= allowed + FLOAT_SLACK and (
        not largest or 127 * rounded.step <= largest * (1 + STEP_SLACK)
    ):
        return moved
    raise ExportError(
        f"layer {rounded.layer}: its weight moved by {moved:.3g} steps of {rounded.step:.3g} where "
        f"its one scale explains {allowed:g}, and its largest number is {largest:.3g}; nothing is "
        "written. Report this file, or leave the scales as they are with --no-compact-plan."
    )
