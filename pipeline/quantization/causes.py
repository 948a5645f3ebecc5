"""Why a layer is noisy: one rule a cause, from measured numbers to words and an option that helps.

Rules are ours; each is only asked where the operand it speaks of makes a good part of the noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from fdda_deploy.config.sections import EFFORTS
from fdda_deploy.pipeline.quantization.layer_facts import LayerFacts
from fdda_deploy.pipeline.report.phrases import significant

GOOD_PART = 0.25
"""Share of a layer's output noise from which an operand's rounding is worth a cause of its own."""
OUTLIER_FACTOR = 4.0
"""Largest value over the 99.9th percentile: a Gaussian's is 1.5, a ReLU output's up to 3."""
UNEVEN_FACTOR = 8.0
"""Widest channel over the median one: three bits that the median channel never uses."""
MOST_CLIPPED = 0.001
FEWEST_NEGATIVE = 0.1
SKEW = 4.0
"""A swish's largest value over the depth of its negative lobe, from which its grid is lopsided."""
MOST_DEAD = 0.1
"""Share of silent channels that is usual on a few images; constant ones are named from one on."""


@dataclass(frozen=True)
class Cause:
    """One likely cause.

    Attributes:
        name: A few words, for instance ``range outliers``.
        tensor: ONNX name of the tensor that has the fault.
        evidence: The measured numbers, in words.
        option: What helps, named as on the command line.
    """

    name: str
    tensor: str
    evidence: str
    option: str


def causes_of(facts: LayerFacts, effort: str | None) -> list[Cause]:
    """Returns the likely causes of a layer's noise, the first explains most; at least one.

    Args:
        facts: As measured.
        effort: ``none``, ``fast``, ``normal`` or ``best``, as the network was rounded: what is
            advised goes a step further. None where the scheme leaves no choice (``fp8``).
    """
    found = []
    equalised = effort not in {None, "none"}
    if facts.tensor is not None and facts.by_input >= GOOD_PART * facts.noise:
        found += [rule(facts, facts.tensor, equalised) for rule in _INPUT_RULES]
    if facts.by_weight >= GOOD_PART * facts.noise:
        found.append(_tiny_filters(facts))
    causes = [cause for cause in found if cause is not None]
    if not causes:
        own = facts.own >= GOOD_PART * facts.noise
        more = _more_effort(effort)
        causes.append(_coarse_grid(facts, more) if own else _accumulated(facts, more))
    if effort is None:
        causes = [dataclasses.replace(cause, option=_OTHER_SCHEME) for cause in causes]
    dead = _dead_channels(facts)
    return causes if dead is None else [*causes, dead]


def _more_effort(effort: str | None) -> str:
    """Returns the efforts beyond ``effort`` that train, as an option; empty after the last."""
    here = EFFORTS.index(effort or "none")
    further = [name for name in ("normal", "best") if EFFORTS.index(name) > here]
    return f"--effort {' or '.join(further)}" if further else ""


def _has_outliers(facts: LayerFacts) -> bool:
    return facts.peak >= OUTLIER_FACTOR * facts.usual > 0


def _outliers(facts: LayerFacts, tensor: str, equalised: bool) -> Cause | None:
    if not _has_outliers(facts):
        return None
    evidence = (
        f"The largest value, {significant(facts.peak)}, is {significant(facts.peak / facts.usual)} "
        f"times the 99.9th percentile ({significant(facts.usual)}; RMS {significant(facts.rms)}). "
        f"{_input_share(facts)}"
    )
    channels = "" if equalised else ", or --effort fast or more (equalises channels)"
    return Cause("range outliers", tensor, evidence, f"--observer percentile or entropy{channels}")


def _uneven_channels(facts: LayerFacts, tensor: str, equalised: bool) -> Cause | None:
    if facts.widest_channel < UNEVEN_FACTOR * facts.median_channel or facts.channels < 2:
        return None
    lost = f"; {facts.lost_channels} round to 0 throughout" if facts.lost_channels else ""
    evidence = (
        f"The widest of {facts.channels} channels reaches {significant(facts.widest_channel)}, the "
        f"median one {significant(facts.median_channel)}{lost}. {_input_share(facts)}"
    )
    option = "--effort fast or more (equalises channels), or --observer percentile"
    return Cause("uneven channels", tensor, evidence, _wider(facts) if equalised else option)


def _swish(facts: LayerFacts, tensor: str, equalised: bool) -> Cause | None:  # noqa: ARG001  # as the other rules
    lobe = -facts.low
    skewed = lobe > 0 and facts.high >= SKEW * lobe and facts.negative_share >= FEWEST_NEGATIVE
    if facts.input_from != "swish" or not skewed:
        return None
    evidence = (
        f"A swish goes from {significant(facts.low)} to {significant(facts.high)}: "
        f"{_percent(facts.negative_share)} of its values lie below 0, where the grid has "
        f"{round(lobe / facts.scale)} of its {2 ** (facts.act_bits or 8)} steps. "
        f"{_input_share(facts)}"
    )
    return Cause("skewed range behind a swish", tensor, evidence, _wider(facts))


def _gate(facts: LayerFacts, tensor: str, equalised: bool) -> Cause | None:  # noqa: ARG001  # as the other rules
    if facts.input_from != "gate":
        return None
    evidence = (
        f"Squeeze-and-excite scales each image's channels anew: the values reach from "
        f"{significant(facts.low)} to {significant(facts.high)} at an RMS of "
        f"{significant(facts.rms)}, on one grid. {_input_share(facts)}"
    )
    return Cause("skewed range behind a gate", tensor, evidence, _wider(facts))


def _clipping(facts: LayerFacts, tensor: str, equalised: bool) -> Cause | None:  # noqa: ARG001  # as the other rules
    clipped = facts.clipped_share > MOST_CLIPPED and facts.clipping_noise > 0.5
    # Outliers that a tight grid gives up for all the others are the cause above, not this one.
    if not clipped or _has_outliers(facts):
        return None
    evidence = (
        f"{_percent(facts.clipped_share)} of the values lie beyond the grid, and make "
        f"{_percent(facts.clipping_noise)} of its error. {_input_share(facts)}"
    )
    return Cause(
        "clipping", tensor, evidence, "more images with --calib-data, or --observer minmax"
    )


def _tiny_filters(facts: LayerFacts) -> Cause | None:
    if not facts.depthwise or facts.weight_bits >= 8:
        return None
    evidence = (
        f"{facts.weights_a_channel} weights a channel on {2**facts.weight_bits} steps leave little "
        f"for errors to cancel in: they make {_of_noise(facts.by_weight, facts)}."
    )
    option = "--max-drop (8 bits for this layer)"
    return Cause("tiny depthwise filters", facts.initializer, evidence, option)


def _dead_channels(facts: LayerFacts) -> Cause | None:
    usual = facts.dead_channels < MOST_DEAD * facts.out_channels
    if not facts.dead_channels or (usual and not facts.constant_channels):
        return None
    evidence = (
        f"{facts.dead_channels} of {facts.out_channels} output channels carry nothing on these "
        f"images: {facts.constant_channels} never change (weights of 0, as a rule), "
        f"{facts.dead_channels - facts.constant_channels} never pass the ReLU."
    )
    option = "more images with --calib-data, of every class; prune what stays silent before a build"
    return Cause("dead channels", facts.initializer, evidence, option)


def _accumulated(facts: LayerFacts, more_effort: str) -> Cause:
    evidence = (
        f"Its input arrives with noise of {_percent(facts.arrived)} of its power; the layer's own "
        f"grids make {_of_noise(facts.own, facts)}."
    )
    tensor = facts.tensor or facts.initializer
    help_all = more_effort or "--max-drop (8 bits or float where it helps most)"
    return Cause("accumulated", tensor, evidence, f"help the layers before it; {help_all}")


def _coarse_grid(facts: LayerFacts, more_effort: str) -> Cause:
    weights = facts.by_weight >= facts.by_input
    bits = facts.weight_bits if weights else facts.act_bits
    share = _of_noise(max(facts.by_weight, facts.by_input), facts)
    evidence = f"No fault of the tensor: rounding to {bits} bits makes {share}."
    tensor = facts.initializer if weights or facts.tensor is None else facts.tensor
    wider = "--max-drop (8 bits or float for this layer)"
    option = f"{more_effort}, or {wider}" if more_effort else wider
    return Cause("coarse grid", tensor, evidence, option)


def _wider(facts: LayerFacts) -> str:
    """Returns how the layer's input gets more steps."""
    if facts.act_bits is not None and facts.act_bits < 8:
        return "--act-bits 8, or --max-drop (8 bits for this layer)"
    return "--max-drop (this layer in float)"


def _input_share(facts: LayerFacts) -> str:
    return f"Rounding the input to {facts.act_bits} bits makes {_of_noise(facts.by_input, facts)}."


def _of_noise(part: float, facts: LayerFacts) -> str:
    """Returns for instance ``88 % of its output's noise``, which may make up for part of itself."""
    share = min(1.0, part / facts.noise) if facts.noise else 0.0
    return f"{_percent(share)} of its output's noise"


def _percent(share: float) -> str:
    return f"{significant(100 * share)} %"


_OTHER_SCHEME = "--scheme w8a8, whose rounding --effort and --max-drop can improve; or fp16"
_INPUT_RULES: tuple[Callable[[LayerFacts, str, bool], Cause | None], ...] = (
    _outliers,
    _uneven_channels,
    _swish,
    _gate,
    _clipping,
)
"""What can be wrong with the input's range, the most specific first."""
