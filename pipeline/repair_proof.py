"""What proves a repair: the outputs stayed, or the graph still stands for the same float network.

`relative L2` of the outputs is the plain answer. On a deep network it also counts every rounding
that fell the other way, so two right graphs may be far apart. Where it is over the tolerance, and
none was asked for, three sharper questions are put, all on the same inputs:

1. With the rounding of activations taken out of both graphs, do they compute the same?
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
from fdda_deploy.exporters.repair.float_twin import Probe, float_twins
from fdda_deploy.exporters.repair.repairing import NOTATION, RESTORING, Repaired, repair

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
MEAN_SLACK = 0.5
"""Steps that the mean of a tensor may be off what its biases were to add; a wrong zero-point is off
by one or more."""
GRID_SLACK = 1.8
"""How much more a new grid may round than its wider steps explain: on few values up to sqrt(3)."""
STEP_SLACK = 0.02
"""How far a new grid's step may be from what keeps the range: UINT8 has 255 steps, INT8 254."""

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
    """

    before: dict[str, Comparison]
    rewritten: dict[str, Comparison] | None
    after: dict[str, Comparison]
    twins: dict[str, float]
    grids: int
    worst_grid: float | None


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
    twins = float_twins(notation.model, repaired.model)
    try:
        floats, _ = _run(twins.before, feed)
        again, _ = _run(twins.after, feed)
    except EngineError:
        return None
    for probe in twins.probes:
        _require_grid(probe, floats)
        _require_shift(probe, floats, again)
    reference = {name: floats[name] for name in wanted}
    apart = _compared(reference, again)
    rewritten = None if notation.exact else _run(notation.model, feed)[0]
    return AgainstFloat(
        before=_compared(reference, wanted),
        rewritten=None if rewritten is None else _compared(reference, rewritten),
        after=_compared(reference, found),
        twins={name: compared.relative_l2 for name, compared in apart.items()},
        grids=len(twins.probes),
        worst_grid=max((_over_due(probe, floats) for probe in twins.probes), default=None),
    )


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


def _over_due(probe: Probe, floats: Mapping[str, Array]) -> float:
    """Returns the root mean square error of the new grid over the one that is due."""
    rounding = max(float(floats[probe.old]), probe.step**2 / 12)
    return float(np.sqrt(float(floats[probe.new]) / rounding)) / probe.widening


def _require_grid(probe: Probe, floats: Mapping[str, Array]) -> None:
    over = _over_due(probe, floats)
    if abs(probe.widened - 1) <= STEP_SLACK and over <= GRID_SLACK:
        return
    raise ExportError(
        f"tensor {probe.tensor}: the steps of its new grid are {probe.widened:.3g} times what "
        f"keeps the range, and round by {over:.3g} times what they should (at most {GRID_SLACK}); "
        "nothing is written. Report this file, or accept the distance of the outputs with "
        "--tolerance."
    )


def _require_shift(probe: Probe, floats: Mapping[str, Array], again: Mapping[str, Array]) -> None:
    if not probe.shift:
        return
    before, after = probe.means
    moved = float(again[after]) - float(floats[before])
    if abs(moved - probe.shift) <= MEAN_SLACK * probe.step:
        return
    raise ExportError(
        f"tensor {probe.tensor}: its mean moved by {moved:.3g} and its zero-point stands for "
        f"{probe.shift:.3g}, so biases took up another; nothing is written. Report this file, or "
        "accept the distance of the outputs with --tolerance."
    )


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
