"""FP8 and FP16 in the configuration: one name sets all widths, and a type for what is left."""

from __future__ import annotations

import pytest

from fdda_deploy.config import config_from
from fdda_deploy.config.reading import config_from_text
from fdda_deploy.config.writing import to_toml
from fdda_deploy.errors import ConfigError
from fdda_deploy.quant.scheme import Scheme, scheme_from_name

DIGITS = {"model": "digits"}


@pytest.mark.parametrize(("name", "widths"), [("fp8", (8, 8)), ("fp16", (8, 16))])
def test_a_format_is_a_scheme_that_reads_back(name, widths):
    config = config_from(None, DIGITS | {"scheme": name})
    scheme = config.quantize.scheme
    assert (scheme.name, scheme.numbers) == (name, name)
    assert (scheme.weight_bits, scheme.act_bits) == widths
    assert config.out_folder.name == f"digits-{name}"
    assert config_from_text(to_toml(config), {}) == config


def test_a_flag_takes_the_place_of_the_format_in_the_file(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('[model]\nname = "digits"\n[quantize]\nscheme = "fp8"\n')
    assert config_from(path, {}).quantize.scheme.name == "fp8"
    assert config_from(path, {"scheme": "w4a8"}).quantize.scheme.name == "w4a8"
    assert config_from(path, {"bits": 4}).quantize.scheme.name == "w4a8"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"scheme": "fp8", "act_bits": 4}, "name different act bits"),
        ({"scheme": "fp8", "bits": 4}, "name different weight bits"),
        ({"scheme": "fp8", "first_last_bits": 4}, "--scheme fp8 fixes all widths"),
        ({"scheme": "fp8", "effort": "best"}, "--scheme fp8 rounds to nearest"),
        ({"scheme": "fp16", "finetune": True}, "--scheme fp16 rounds to nearest"),
        ({"scheme": "fp8", "max_drop": 1.0}, "--max-drop are for integer grids"),
        ({"scheme": "fp8", "scale_search": "easyquant"}, "Leave them out, or take --scheme w8a8"),
        ({"float_type": "bf16"}, "--float-type"),
    ],
)
def test_what_does_not_go_with_a_format_is_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        config_from(None, DIGITS | flags)


@pytest.mark.parametrize(
    ("flags", "half"),
    [
        ({"scheme": "w8a8"}, False),
        ({"scheme": "w8a8", "float_type": "fp16"}, True),
        ({"scheme": "w4a16"}, True),
        ({"scheme": "w4a16", "float_type": "fp32"}, False),
        ({"scheme": "fp8"}, False),
        ({"scheme": "fp16"}, True),
    ],
)
def test_activations_that_stay_in_float_are_fp16_unless_asked_otherwise(flags, half):
    assert config_from(None, DIGITS | flags).quantize.casts_to_half is half


def test_a_scheme_of_unknown_numbers_is_refused():
    with pytest.raises(ConfigError, match="numbers 'fp4': want one of integer, fp8, fp16"):
        Scheme(8, 8, numbers="fp4")


@pytest.mark.parametrize("name", ["fp8", "fp16"])
def test_a_format_says_what_runs(name):
    scheme = scheme_from_name(name)
    assert name.upper() in scheme.runs_as
    assert scheme.storage == ("fp8" if name == "fp8" else "int8")
