"""What rounding did, in the report: its part of report.json, its sentences and its warnings."""

from __future__ import annotations

from typing import Annotated, NotRequired, TypedDict

from fdda_deploy.pipeline.report.checking import Between
from fdda_deploy.pipeline.report.parts import Finetune
from fdda_deploy.pipeline.report.phrases import counted, duration, significant

Count = Annotated[int, Between(0)]
Seconds = Annotated[float, Between(0)]
MOST_WARNINGS = 3
"""Warnings of reconstruction that the page spells out; report.json has them all."""
_TAKEN_BACK = "taken back: KL on held-out images went"


class Change(TypedDict):
    """One change of the network, kept only if held-out images agree.

    Attributes:
        before: KL(float || quantized) of the prediction on held-out images, nats.
        after: The same with the change; None where it was not finite.
    """

    kept: bool
    before: float | None
    after: float | None


class BiasCorrection(Change):
    """Biases moved by the mean shift of their layer's output; ``biases``: how many."""

    biases: Count


class ClosedForm(Change):
    """Second-order rounding; ``left``: pairs of (weight, why it stayed as it was)."""

    left: list[list[str]]
    seconds: Seconds


class Reconstruction(Change):
    """Block reconstruction; ``warnings``: a line for each block that it could not better."""

    settings: dict[str, object]
    blocks: Count
    blocks_kept: Count
    warnings: list[str]
    seconds: Seconds


class Rounding(TypedDict):
    """How weights came to their integers, in the order in which it happened.

    Attributes:
        effort: ``none``, ``fast``, ``normal`` or ``best``.
        images: That rounding saw; absent with effort ``none``.
    """

    effort: str
    images: NotRequired[Count]
    scale_search: Change | None
    closed_form: ClosedForm | None
    reconstruction: Reconstruction | None
    bias_correction: BiasCorrection | None


def rounding_sentences(rounding: Rounding, finetune: Finetune | None) -> list[str]:
    """Returns what happened, one sentence a change, in the order of the changes.

    Example:
        >>> part = {"kept": True, "before": 4.5, "after": 0.1, "left": [], "seconds": 30.0}
        >>> nothing = {"scale_search": None, "reconstruction": None, "bias_correction": None}
        >>> rounding_sentences({"effort": "fast", "closed_form": part, **nothing}, None)[0]
        'Closed-form rounding was kept: KL on held-out images fell from 4.50 nats to 0.100 nats.'
    """
    sentences = []
    if rounding["scale_search"] is not None:
        sentences.append(_sentence("The scale search", rounding["scale_search"]))
    if rounding["closed_form"] is not None:
        sentences.append(_closed_form(rounding["closed_form"]))
    if rounding["reconstruction"] is not None:
        sentences.append(_reconstruction(rounding["reconstruction"]))
    if rounding["bias_correction"] is not None:
        what = f"Bias correction of {counted(rounding['bias_correction']['biases'], 'layer')}"
        sentences.append(_sentence(what, rounding["bias_correction"]))
    if rounding["closed_form"] is None and rounding["reconstruction"] is None:
        sentences.insert(0, "Weights were rounded to nearest (--effort none).")
    if finetune is not None and not finetune["kept"]:
        sentences.append(
            "Fine-tuning did not lower its metric and was not kept: the network is as it was "
            f"before ({finetune['metric']}: from {_nats(finetune['before'])} to "
            f"{_nats(finetune['after'])})."
        )
    return sentences


def rounding_warnings(rounding: Rounding) -> list[str]:
    """Returns what speaks against the rounding: changes that were taken back, blocks that diverged.

    A correction of biases or a search of scales that is taken back is no fault: it was a try.
    """
    found = [
        _sentence(what, change)
        for what, change in (
            ("Closed-form rounding", rounding["closed_form"]),
            ("Reconstruction", rounding["reconstruction"]),
        )
        if change is not None and not change["kept"]
    ]
    lines = [] if rounding["reconstruction"] is None else rounding["reconstruction"]["warnings"]
    found += lines[:MOST_WARNINGS]
    if len(lines) > MOST_WARNINGS:
        more = counted(len(lines) - MOST_WARNINGS, "warning")
        found.append(f"Reconstruction gave {more} more; report.json has them all.")
    return found


def known_kl(rounding: Rounding, finetune: Finetune | None) -> float | None:
    """Returns the KL(float || quantized) that held-out images showed last, nats; None if unknown.

    A change that was taken back leaves the network as it was before.
    """
    in_order = (
        finetune,
        rounding["bias_correction"],
        rounding["reconstruction"],
        rounding["closed_form"],
        rounding["scale_search"],
    )
    last = next((change for change in in_order if change is not None), None)
    if last is None:
        return None
    return last["after"] if last["kept"] else last["before"]


def _closed_form(part: ClosedForm) -> str:
    left = part["left"]
    kept = f" {counted(len(left), 'weight')} stayed as nearest rounding has it." if left else ""
    return _sentence("Closed-form rounding", part) + kept


def _reconstruction(part: Reconstruction) -> str:
    blocks = counted(part["blocks"], "block")
    done = f" It bettered {part['blocks_kept']:,} of {blocks} in {duration(part['seconds'])}."
    return _sentence("Reconstruction", part) + done


def _sentence(what: str, change: Change) -> str:
    verb = "kept: KL on held-out images fell" if change["kept"] else _TAKEN_BACK
    return f"{what} was {verb} from {_nats(change['before'])} to {_nats(change['after'])}."


def _nats(value: float | None) -> str:
    return "a value that is not finite" if value is None else f"{significant(value)} nats"
