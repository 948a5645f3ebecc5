"""Each rule asks for its own numbers, and only where its operand makes a good part of the noise."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from faulty_networks import healthy
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.pipeline.quantization.causes import GOOD_PART, Cause, causes_of
from fdda_deploy.pipeline.quantization.layer_facts import LayerFacts

FAULTS: dict[str, dict[str, Any]] = {
    "range outliers": {"peak": 40.0},
    "uneven channels": {"widest_channel": 40.0, "lost_channels": 3},
    "skewed range behind a swish": {"input_from": "swish", "low": -0.28, "negative_share": 0.6},
    "skewed range behind a gate": {"input_from": "gate"},
    "clipping": {"clipped_share": 0.02, "clipping_noise": 0.7},
    "tiny depthwise filters": {"depthwise": True, "weights_a_channel": 9},
}
BY_INPUT = [name for name in FAULTS if name != "tiny depthwise filters"]


def facts(**numbers: Any) -> LayerFacts:
    return dataclasses.replace(healthy(), **numbers)


def names(causes: list[Cause]) -> list[str]:
    return [cause.name for cause in causes]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_single_fault_is_the_single_cause(fault: str) -> None:
    assert names(causes_of(facts(**FAULTS[fault]), "none")) == [fault]


@pytest.mark.parametrize("fault", BY_INPUT)
def test_an_input_that_makes_little_of_the_noise_is_not_blamed(fault: str) -> None:
    little = {"by_input": 0.99 * GOOD_PART * 0.04}
    assert names(causes_of(facts(**FAULTS[fault], **little), "none")) == ["coarse grid"]
    assert names(causes_of(facts(**FAULTS[fault], tensor=None, act_bits=None), "none")) == [
        "coarse grid"
    ]


def test_filters_that_make_little_of_the_noise_are_not_blamed() -> None:
    few = FAULTS["tiny depthwise filters"]
    assert names(causes_of(facts(**few, by_weight=0.001), "none")) == ["coarse grid"]
    assert names(causes_of(facts(**few, weight_bits=8), "none")) == ["coarse grid"]


@pytest.mark.parametrize(
    ("numbers", "tensor", "words"),
    [
        ({}, "layer1.weight", "rounding to 4 bits makes 45.0 % of its output's noise"),
        ({"by_input": 0.03}, "Relu_output", "rounding to 4 bits makes 75.0 %"),
        ({"by_weight": 0.06}, "layer1.weight", "makes 100 % of its output's noise"),
    ],
    ids=["weight", "input", "more than there is"],
)
def test_a_coarse_grid_is_that_of_the_louder_operand(
    numbers: dict[str, float], tensor: str, words: str
) -> None:
    (cause,) = causes_of(facts(**numbers), "none")
    assert (cause.name, cause.tensor) == ("coarse grid", tensor)
    assert words in cause.evidence
    assert "--max-drop" in cause.option


def test_noise_that_came_from_before_is_said_with_its_share() -> None:
    (cause,) = causes_of(facts(by_input=0.004, by_weight=0.002, arrived=0.031), "none")
    assert (cause.name, cause.tensor) == ("accumulated", "Relu_output")
    assert "noise of 3.10 % of its power" in cause.evidence
    assert "own grids make 15.0 %" in cause.evidence


def test_a_grid_that_gives_up_outliers_is_not_also_told_to_take_them_in() -> None:
    both = FAULTS["range outliers"] | FAULTS["clipping"]
    assert names(causes_of(facts(**both), "none")) == ["range outliers"]


def test_a_symmetric_swish_is_no_fault() -> None:
    swish = FAULTS["skewed range behind a swish"]
    assert names(causes_of(facts(**swish | {"low": -3.0}), "none")) == ["coarse grid"]
    assert names(causes_of(facts(**swish | {"negative_share": 0.05}), "none")) == ["coarse grid"]


@pytest.mark.parametrize(
    ("constant", "dead", "told"), [(0, 3, False), (0, 4, True), (1, 1, True), (0, 0, False)]
)
def test_silent_channels_are_told_where_they_are_constant_or_many(
    constant: int, dead: int, told: bool
) -> None:
    causes = causes_of(facts(constant_channels=constant, dead_channels=dead), "none")
    assert ("dead channels" in names(causes)) == told


@pytest.mark.parametrize(
    ("bits", "option"),
    [
        (4, "--act-bits 8, or --max-drop (8 bits for this layer)"),
        (8, "--max-drop (this layer in float)"),
    ],
)
def test_the_advice_fits_the_width_at_hand(bits: int, option: str) -> None:
    (cause,) = causes_of(facts(input_from="gate", act_bits=bits), "none")
    assert cause.option == option


def test_equalised_channels_are_not_to_be_equalised_again() -> None:
    for fault in ("range outliers", "uneven channels"):
        (cause,) = causes_of(facts(**FAULTS[fault]), "fast")
        assert "--effort" not in cause.option


@pytest.mark.parametrize(
    ("effort", "advised"),
    [
        ("none", {"normal", "best"}),
        ("fast", {"normal", "best"}),
        ("normal", {"best"}),
        ("best", set()),
    ],
)
def test_advice_goes_a_step_further_than_the_effort_that_was_taken(
    effort: str, advised: set[str]
) -> None:
    for numbers in ({}, {"by_input": 0.004, "by_weight": 0.002, "arrived": 0.031}):
        (cause,) = causes_of(facts(**numbers), effort)
        said = re.findall(r"--effort ([a-z]+)(?: or ([a-z]+))?", cause.option)
        assert {word for words in said for word in words if word} == advised
        assert ("--max-drop" in cause.option) >= (effort == "best")


@pytest.mark.parametrize("fault", [*FAULTS, "coarse grid"])
def test_a_scheme_without_efforts_is_told_of_other_schemes_alone(fault: str) -> None:
    for cause in causes_of(facts(**FAULTS.get(fault, {})), None):
        assert cause.option.startswith("--scheme w8a8")


NUMBER = st.floats(0, 1e6) | st.just(0.0)


@given(
    st.fixed_dictionaries(
        dict.fromkeys(("noise", "arrived", "by_input", "by_weight", "peak", "usual"), NUMBER)
        | dict.fromkeys(("rms", "high", "widest_channel", "median_channel"), NUMBER)
        | {"low": st.floats(-1e6, 0), "scale": st.floats(1e-6, 1e3)}
        | {field: st.floats(0, 1) for field in ("negative_share", "clipped_share")}
        | {"input_from": st.sampled_from(["swish", "gate", "other"]), "depthwise": st.booleans()}
    )
)
def test_whatever_was_measured_there_is_a_cause_in_words(numbers: dict[str, Any]) -> None:
    causes = causes_of(facts(**numbers), "none")
    assert causes
    for cause in causes:
        assert cause.tensor in {"Relu_output", "layer1.weight"}
        assert cause.name
        assert "nan" not in cause.evidence
        assert "\n" not in cause.evidence + cause.option
