"""Synthesis in the report: only what was measured is said, and distances are drawn beside noise."""

from __future__ import annotations

from typing import Any

import pytest
from report_sample import full_report

from fdda_deploy.pipeline.report.phrases import counted, percent
from fdda_deploy.pipeline.report.schema import validate
from fdda_deploy.pipeline.report.synthesis import distances_svg, synthesis_sentences

QUALITY = {
    "teacher_confidence": 88.5,
    "diversity": 0.5,
    "class_spread": 0.25,
    "real_diversity": 0.625,
    "real_class_spread": None,
}


@pytest.fixture
def synthesis() -> Any:
    """The sample report's part on synthesis, with whatever keys a test adds."""
    return full_report()["synthesis"]


def test_what_was_measured_is_said_and_nothing_else(synthesis: Any) -> None:
    assert synthesis_sentences(synthesis) == [
        f"The float network names the wanted class on {percent(97.25)} of {counted(400, 'image')}."
    ]
    synthesis |= QUALITY | {"teacher_top1": None}
    first, sure, any_two, of_class = synthesis_sentences(synthesis)
    assert first == f"The float network's prediction labels the {counted(400, 'image')}."
    assert percent(88.5) in sure
    assert any_two == "Two images are 0.500 apart in cosine distance (real images: 0.625)."
    assert of_class == "Two of one class are 0.250 apart in cosine distance."


def test_distances_stand_beside_those_of_noise(synthesis: Any) -> None:
    assert distances_svg(synthesis) is None, "no noise was measured"
    synthesis["noise_distance"] = [2.0 + value for value in synthesis["bns_distance"]]
    drawn = distances_svg(synthesis)
    assert drawn is not None
    assert drawn.startswith("<svg")
    assert "noise" in drawn
    synthesis["bns_distance"] = [None, *synthesis["bns_distance"][1:]]
    assert distances_svg(synthesis) is not None, "a layer that is not finite leaves a gap"


def test_report_with_and_without_quality_is_valid() -> None:
    report: Any = full_report()
    validate(report)
    report["synthesis"] |= QUALITY | {"noise_distance": [1.0] * 13}
    validate(report)
    report["synthesis"]["teacher_confidence"] = 101.0
    with pytest.raises(ValueError, match=r"synthesis\.teacher_confidence: got 101"):
        validate(report)
