"""What proves a repair: the outputs stayed, or the graph still stands for the same float network.

`relative L2` of the outputs is the plain answer. On a deep network it also counts every rounding
that fell the other way, so two right graphs may be far apart. Where it is over the tolerance, and
none was asked for, three sharper questions are put, all on the same inputs:

1. With the rounding of activations taken out of both graphs, do they compute the same? Where a
   compact plan was asked for, weights were quantized anew: each has to be where it was to half a
   step, and the graph that came is given them first.
2. Does every grid that changed keep its range, and round by no more than its wider steps cost?
3. Is the repaired graph no farther from that float network than the graph was that came? And
   that one, if its operators had to be written as Q/DQ pairs to find the network, than those?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from fdda_deploy.engines.compare import Comparison, compare_arrays
from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.engines.runner import Array, Feed
from fdda_deploy.errors import EngineError, ExportError
from fdda_deploy.exporters.repair import one_scale
from fdda_deploy.exporters.repair.float_twin import Twins, float_twins, with_weights
from fdda_deploy.exporters.repair.repairing import NOTATION, RESTORING, Repaired, repair
from fdda_deploy.pipeline.repair_grids import (
    over_due,
    require_grid,
    require_shift,
    weight_moved,
)

EXACT_TOLERANCE = 1e-5
"""Relative L2 distance of the outputs where every repair was exact: float rounding."""
GRID_TOLERANCE = 0.1
"""The same where a grid had to change, as from UINT8 behind a ReLU to symmetric INT8."""
TWIN_TOLERANCE = 1e-4
"""The same between two float networks that are one."""
WEIGHT_REPAIRS = ("R06", "R07")
"""Repairs that may round weights anew, and so change the float network a little."""
FARTHER = 1.1
"""How much farther from its float network a graph may be after its repair."""
AS_GIVEN = "the file as it was"
RESTORED = "the file with its opset, IR and axes repaired, as nothing loads it before"


@dataclass(frozen=True)
class AgainstFloat:
    """How far both graphs are from the float network that they stand for, on the proof's inputs.

    Attributes:
        before: Comparison of each output as the file computed it, by name.
        rewritten: The same of the file written as Q/DQ pairs; None where it was that already.
        after: The same of the repaired graph.
        twins: Relative L2 distance between the float networks of both graphs, by output.
        grids: Tensors whose grid changed.
        worst_grid: The largest rounding error among them over what its wider steps explain; None
            where no grid changed.
        widest_grid: The largest of its steps over what keeps the range, beyond 1 only where tensors
            were to share a scale; None where no grid changed.
        weights: Layers whose weight a compact plan quantized anew.
        worst_weight: The farthest that one of their weights moved, in steps; None without any.
    """

    before: dict[str, Comparison]
    rewritten: dict[str, Comparison] | None
    after: dict[str, Comparison]
    twins: dict[str, float]
    grids: int
    worst_grid: float | None
    widest_grid: float | None = None
    weights: int = 0
    worst_weight: float | None = None


@dataclass(frozen=True)
class Proof:
    """How near the repaired graph's outputs are to those of the graph before.

    Attributes:
        reference: What was run before the repair, in words.
        inputs: What both graphs were fed, in words.
        runtime: ONNX Runtime's version and setting.
        tolerance: Largest relative L2 distance that is accepted without a further question.
        outputs: Comparison of each output, by name.
        against_float: None where a tolerance was asked for, every repair was exact, or ONNX
            Runtime cannot run the float network; then the tolerance decides alone.
    """

    reference: str
    inputs: str
    runtime: str
    tolerance: float
    outputs: dict[str, Comparison]
    against_float: AgainstFloat | None


def proved(
    model: onnx.ModelProto,
    repaired: Repaired,
    target: str,
    feed: Feed,
    inputs: str,
    tolerance: float | None,
) -> Proof:
    """Returns the proof that ``repaired`` may stand for ``model``.

    Args:
        model: The graph as it came.
        repaired: The same after its repairs, at least one.
        target: As for `repair`.
        feed: One array per input.
        inputs: What ``feed`` is, in words.
        tolerance: Largest relative L2 distance of any output; None asks as the first lines of
            this file say, with 1e-5 where every repair was exact, and 0.1 where a grid changed.

    Raises:
        ExportError: The proof fails; the message has the figures.
        EngineError: ONNX Runtime cannot run a graph, or an output is not finite.
    """
    reference = AS_GIVEN
    try:
        wanted, _ = _run(model, feed)
    except EngineError:
        restored = repair(model, target=target, only=RESTORING)
        if not restored.applied:
            raise
        wanted, _ = _run(restored.model, feed)
        reference = RESTORED
    found, runtime = _run(repaired.model, feed)
    if list(wanted) != list(found):
        raise ExportError("the repair changed the graph's outputs. Report this file.")
    allowed = tolerance or (EXACT_TOLERANCE if repaired.exact else GRID_TOLERANCE)
    moved = _compared(wanted, found)
    against = None
    if tolerance is None and not repaired.exact:
        notation = repair(model, target=target, only=NOTATION)
        against = _against_float(notation, repaired, feed, wanted, found)
        if against is not None:
            _require_same_network(against, repaired)
    proof = Proof(reference, inputs, runtime, allowed, moved, against)
    _require_near(proof)
    return proof


def _against_float(
    notation: Repaired,
    repaired: Repaired,
    feed: Feed,
    wanted: Mapping[str, Array],
    found: Mapping[str, Array],
) -> AgainstFloat | None:
    """Returns the distances; None where ONNX Runtime takes integers and not the floats."""
    anew = [change.node for change in repaired.applied if change.repair == one_scale.REPAIR.id]
    twins = float_twins(notation.model, repaired.model, repaired.notes, anew)
    try:
        floats, _ = _run(twins.before, feed)
        again, _ = _run(twins.after, feed)
    except EngineError:
        return None
    for probe in twins.probes:
        require_grid(probe, floats)
        require_shift(probe, floats, again)
    worst_weight = _worst_weight(twins, repaired, floats, again)
    reference = {name: floats[name] for name in wanted}
    expected = reference
    if twins.weights:
        given = {w.layer: again[w.after] / np.float32(w.factor) for w in twins.weights}
        same_weights, _ = _run(with_weights(twins.before, given), feed)
        expected = {name: same_weights[name] for name in wanted}
    rewritten = None if notation.exact else _run(notation.model, feed)[0]
    return AgainstFloat(
        before=_compared(reference, wanted),
        rewritten=None if rewritten is None else _compared(reference, rewritten),
        after=_compared(reference, found),
        twins={name: apart.relative_l2 for name, apart in _compared(expected, again).items()},
        grids=len(twins.probes),
        worst_grid=max((over_due(probe, floats) for probe in twins.probes), default=None),
        widest_grid=max((probe.widened for probe in twins.probes), default=None),
        weights=len(twins.weights),
        worst_weight=worst_weight,
    )


def _worst_weight(
    twins: Twins, repaired: Repaired, floats: Mapping[str, Array], again: Mapping[str, Array]
) -> float | None:
    """Returns how far weights moved at most, in steps, after holding each to half a step."""
    twice = any(c.repair in WEIGHT_REPAIRS and not c.exact for c in repaired.applied)
    allowed = 1.0 if twice else 0.5
    worst = []
    for weight in twins.weights:
        wanted = np.asarray(floats[weight.before], np.float64) * weight.factor
        worst.append(weight_moved(weight, wanted, again[weight.after], allowed))
    return max(worst, default=None)


def _compared(a: Mapping[str, Array], b: Mapping[str, Array]) -> dict[str, Comparison]:
    return {name: compare_arrays(name, a[name], b[name]) for name in a}


def _run(model: onnx.ModelProto, feed: Feed) -> tuple[dict[str, Array], str]:
    runner = OrtRunner(model.SerializeToString(), optimizations="basic")
    with runner:
        outputs, described = runner.infer(feed), runner.describe()
    for name, array in outputs.items():
        if not np.isfinite(np.asarray(array, np.float64)).all():
            raise EngineError(
                f"output {name}: not finite on the inputs of the proof, so nothing can be proved. "
                "Give inputs that the network is made for with --feed."
            )
    return outputs, described


def _require_same_network(against: AgainstFloat, repaired: Repaired) -> None:
    rounded_anew = any(c.repair in WEIGHT_REPAIRS and not c.exact for c in repaired.applied)
    allowed = GRID_TOLERANCE if rounded_anew else TWIN_TOLERANCE
    for name, apart in against.twins.items():
        if not apart <= allowed:
            raise ExportError(
                f"output {name}: without the rounding of activations the repaired graph is a "
                f"relative L2 distance of {apart:.3g} from the file, over {allowed:g}, so it is "
                "another network; nothing is written. Report this file, or accept the distance of "
                "the outputs with --tolerance."
            )
    for name, found in (against.rewritten or {}).items():
        before = against.before[name].relative_l2
        if not before <= FARTHER * found.relative_l2 + TWIN_TOLERANCE:
            raise ExportError(
                f"output {name}: the file is a relative L2 distance of {before:.3g} from the float "
                f"network that its operators were read as, and {found.relative_l2:.3g} once they "
                "are Q/DQ pairs, so they were misread; nothing is written. Report this file, or "
                "accept the distance of the outputs with --tolerance."
            )


def _require_near(proof: Proof) -> None:
    for name, compared in proof.outputs.items():
        if compared.relative_l2 <= proof.tolerance:
            continue
        far = (
            f"output {name}: the repairs move it by a relative L2 distance of "
            f"{compared.relative_l2:.3g}, over the tolerance of {proof.tolerance:g}"
        )
        against = proof.against_float
        if against is not None:
            before, after = against.before[name].relative_l2, against.after[name].relative_l2
            if after <= FARTHER * before:
                continue
            far += (
                f", and from {before:.3g} to {after:.3g} off the float network that the file "
                f"stands for, over {FARTHER} times"
            )
        raise ExportError(
            f"{far}; nothing is written. Quantize the network again symmetrically, prove it on "
            "real inputs with --feed, or accept the distance with --tolerance."
        )
