"""Options of ranges, scale search and fine-tuning: flags reach the settings, faults are named."""

from __future__ import annotations

import pytest

from fdda_deploy.cli.options import Options, UsageFaultError
from fdda_deploy.config import config_from_text
from fdda_deploy.config.sections import FINETUNE_LOSSES, OBSERVERS, SCALE_SEARCHES
from fdda_deploy.errors import ConfigError


def test_flags_reach_the_settings() -> None:
    options = Options(
        "digits",
        observer="entropy",
        scale_search="easyquant",
        finetune_loss="dkd",
        psg=True,
        scale_clip=2.5,
    )
    found = options.build_config().quantize
    assert (found.observer, found.scale_search) == ("entropy", "easyquant")
    assert (found.finetune_loss, found.psg, found.scale_clip) == ("dkd", True, 2.5)


def test_without_them_everything_is_as_published() -> None:
    found = Options("digits").build_config().quantize
    assert (found.observer, found.scale_search) == ("mse", "none")
    assert (found.finetune_loss, found.psg, found.scale_clip) == ("fdda", False, None)


def test_a_file_sets_them_and_a_flag_wins() -> None:
    toml = "[quantize]\nscale_clip = 2\npsg = true\nobserver = 'lp'\n"
    found = config_from_text(toml, {"model": "digits", "psg": False}, "a.toml").quantize
    assert (found.scale_clip, found.psg, found.observer) == (2.0, False, "lp")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observer": "entropi"}, "--observer: unknown 'entropi'. Did you mean 'entropy'?"),
        ({"scale_search": "easy"}, "--scale-search: unknown 'easy'. Did you mean 'easyquant'?"),
        ({"finetune_loss": "kd"}, "--finetune-loss: unknown 'kd'. Did you mean 'dkd'?"),
        ({"scale_clip": 1.0}, "--scale-clip: got 1.0, wanted 1.1 or more."),
        ({"scale_clip": 1e9}, "--scale-clip: got 1000000000.0, wanted 100.0 or less."),
        ({"scale_clip": float("nan")}, "--scale-clip: got nan, wanted a finite number."),
    ],
)
def test_wrong_values_are_refused_in_one_line(changes: dict[str, object], message: str) -> None:
    options = Options("digits", **changes)  # type: ignore[arg-type]
    with pytest.raises(UsageFaultError) as caught:
        options.build_config()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_file_that_wants_psg_by_name_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"\[quantize\] psg: got the string 'on', wanted true or f"
    ):
        config_from_text("[quantize]\npsg = 'on'\n", {"model": "digits"}, "a.toml")


def test_names_in_the_configuration_are_those_of_the_code() -> None:
    from fdda_deploy.pipeline.quantization import distillation, ranges

    assert set(ranges.OBSERVERS) == set(OBSERVERS)
    assert distillation.LOSSES == FINETUNE_LOSSES
    assert SCALE_SEARCHES == ("none", "easyquant")
