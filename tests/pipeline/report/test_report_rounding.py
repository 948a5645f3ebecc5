"""What rounding did: one sentence a change, a warning for each that failed, the last KL known."""

from __future__ import annotations

import re
from typing import Any

import pytest
from report_sample import bare_report, full_report
from rounding_sample import CHANGES, rounding

from fdda_deploy.pipeline.report.html import render_html
from fdda_deploy.pipeline.report.rounding import (
    MOST_WARNINGS,
    known_kl,
    rounding_sentences,
    rounding_warnings,
)

SPACE = "\u00a0"
KL = "KL on held-out images"
LEFT = "1 weight stayed as nearest rounding has it."
BLOCKS = "It bettered 6 of 7 blocks in 41.3 s."


def nothing(**changes: Any) -> Any:
    """Returns a build in which only these changes were tried."""
    return {"effort": "fast", **dict.fromkeys(CHANGES), **changes}


def tried(*, kept: bool, after: float | None = 0.1) -> dict[str, Any]:
    return {"kept": kept, "before": 4.5, "after": after, "left": [], "seconds": 1.0}


def finetune(*, kept: bool) -> Any:
    return full_report()["finetune"] | {"kept": kept, "before": 0.02, "after": 0.03}  # type: ignore[operator]  # never None there


def test_every_change_has_its_sentence_in_order() -> None:
    sentences = [text.replace(SPACE, " ") for text in rounding_sentences(rounding(), None)]  # type: ignore[arg-type]  # plain data
    assert sentences == [
        f"The scale search was kept: {KL} fell from 4.61 nats to 4.50 nats.",
        f"Closed-form rounding was kept: {KL} fell from 4.50 nats to 0.100 nats. {LEFT}",
        f"Reconstruction was kept: {KL} fell from 0.100 nats to 0.0412 nats. {BLOCKS}",
        f"Bias correction of 14 layers was taken back: {KL} went from 0.0412 nats to 0.0433 nats.",
    ]


def test_rounding_to_nearest_is_said_so() -> None:
    assert rounding_sentences(nothing(), None) == [
        "Weights were rounded to nearest (--effort none)."
    ]


def test_a_fine_tune_that_was_not_kept_is_said_so() -> None:
    *_, last = rounding_sentences(nothing(), finetune(kept=False))
    assert last.startswith("Fine-tuning did not lower its metric and was not kept")
    assert "from 0.0200 nats to 0.0300 nats" in last
    assert len(rounding_sentences(nothing(), finetune(kept=True))) == 1


def test_a_change_that_diverged_is_a_warning() -> None:
    part = nothing(closed_form=tried(kept=False, after=None))
    (warning,) = rounding_warnings(part)
    assert warning.startswith(f"Closed-form rounding was taken back: {KL} went from 4.50 nats to")
    assert warning.endswith("to a value that is not finite.")
    assert rounding_warnings(nothing(closed_form=tried(kept=True))) == []
    assert rounding_warnings(nothing(bias_correction=tried(kept=False))) == []


@pytest.mark.parametrize("number", [0, 1, MOST_WARNINGS, MOST_WARNINGS + 2])
def test_warnings_of_reconstruction_are_passed_on_the_first_few_in_full(number: int) -> None:
    part = rounding()
    part["reconstruction"]["warnings"] = [f"block {index}: stuck." for index in range(number)]
    found = rounding_warnings(part)  # type: ignore[arg-type]  # plain data
    assert found[:MOST_WARNINGS] == [f"block {index}: stuck." for index in range(number)][:3]
    assert len(found) == min(number, MOST_WARNINGS + 1)
    if number > MOST_WARNINGS:
        assert found[-1].replace(SPACE, " ") == (
            "Reconstruction gave 2 warnings more; report.json has them all."
        )


@pytest.mark.parametrize(
    ("part", "tuned", "kl"),
    [
        (nothing(), None, None),
        (nothing(), finetune(kept=True), 0.03),
        (nothing(), finetune(kept=False), 0.02),
        (nothing(closed_form=tried(kept=True)), None, 0.1),
        (nothing(closed_form=tried(kept=False)), None, 4.5),
        (rounding(), None, 0.0412),
    ],
)
def test_the_last_known_kl_is_of_the_network_that_was_kept(
    part: Any, tuned: Any, kl: float | None
) -> None:
    assert known_kl(part, tuned) == kl


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (full_report, "Reconstruction was kept"),
        (full_report, "Effort normal, on 1,000 images."),
        (bare_report, "Weights were rounded to nearest"),
        (bare_report, "Effort none."),
    ],
)
def test_the_page_has_the_sentences(build: Any, words: str) -> None:
    page = render_html(build(), contact_sheet_png=None).replace(SPACE, " ")
    assert words in re.sub(r"\s+", " ", page)
