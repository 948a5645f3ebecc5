"""What ``--recipe auto`` takes, and what is refused, by what the user has."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fdda_deploy.config.sections import SynthesisConfig
from fdda_deploy.errors import ConfigError, DataError, FddaDeployError, ModelError
from fdda_deploy.pipeline.stages.recipe_choice import Situation, choose_recipe, scheduled
from fdda_deploy.pipeline.synthesis.recipes import RECIPES, recipe_named


def situation(
    layers: int = 5, real: int = 0, *, made: int = 0, labelled: bool = False, folded: int = 0
) -> Any:
    return Situation("net", layers, real + made, labelled, bool(made), lambda: folded)


@pytest.mark.parametrize(
    ("has", "name", "reason"),
    [
        (situation(), "genie", "there is no real image"),
        (situation(real=10, labelled=True), "fdda", "10 labelled real images give class centers"),
        (situation(real=24), "genie", "24 real images without labels"),
        (situation(real=1000, labelled=True), "none", "1,000 real images are enough"),
        (situation(real=999, labelled=True), "fdda", "999 labelled"),
        (situation(layers=0, real=3), "none", "no BatchNorm layer"),
        (situation(made=3, labelled=True), "none", "3 synthetic images were given, so none are"),
    ],
)
def test_auto_takes_what_the_user_has_images_for(has: Situation, name: str, reason: str) -> None:
    choice = choose_recipe("auto", has)
    assert choice.name == name
    assert reason in choice.reason


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_asked_for_is_taken(name: str) -> None:
    assert choose_recipe(name, situation(real=2000, labelled=True)).name == name


@pytest.mark.parametrize(
    ("asked", "has", "kind", "message"),
    [
        ("auto", situation(layers=0), DataError, "has no BatchNorm layer.*give real images"),
        ("genie", situation(layers=0, real=9), ModelError, "has no BatchNorm layer.*recipe none"),
        ("auto", situation(layers=0, folded=7), DataError, "7 convolutions have biases.*before"),
        ("fdda", situation(real=9), ConfigError, "one labelled real image per class.*genie"),
        ("none", situation(), ConfigError, "makes no image: give real ones"),
    ],
)
def test_what_cannot_work_says_the_way_out(
    asked: str, has: Situation, kind: type[FddaDeployError], message: str
) -> None:
    with pytest.raises(kind, match=message) as refused:
        choose_recipe(asked, has)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "fdda-paper"])
def test_reduced_schedules_are_shorter_and_valid(name: str, size: str) -> None:
    published = recipe_named(name)
    short = scheduled(published, SynthesisConfig(), size=size, reduce=True)
    assert short.num_steps < published.num_steps
    assert short.source == published.source
    assert scheduled(published, SynthesisConfig(), size=size, reduce=False) is published


def test_overrides_win_over_the_reduced_schedule() -> None:
    settings = SynthesisConfig(num_steps=9, overrides={"width": 48, "set_batch": 20})
    recipe = recipe_named("genie", settings.overrides)
    short = scheduled(recipe, settings, size="large", reduce=True)
    assert (short.num_steps, short.width, short.set_batch) == (9, 48, 20)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("fdda", {"source": "pixels"}, "source pixels learns the images.*class_batch = 16 needs"),
        ("dsg", {"joint_statistics": True}, "joint_statistics pools images"),
        ("zeroq", {"source": "pixel"}, "source = 'pixel': want generator or long-range"),
        ("zeroq", {"set_batch": 1}, "set_batch 1. Want at least 2"),
        ("dsg", {"slack_quantile": 1.5}, "slack_quantile = 1.5: want at most 1"),
        ("zeroq", {"low_pass_px": -1.0}, "low_pass_px = -1.0: want at least 0"),
        ("genie", {"interleave_finetune": True}, "interleave_finetune = True needs a generator"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    name: str, overrides: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        recipe_named(name, overrides)
    assert not re.search(r"\n", str(refused.value))
