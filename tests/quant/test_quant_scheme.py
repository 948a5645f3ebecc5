"""Schemes: names in, widths out, and a sentence on what the hardware makes of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.errors import ConfigError
from fdda_deploy.quant.scheme import PRESETS, Scheme, scheme_from_bits, scheme_from_name

WEIGHTS = st.integers(2, 8)
ACTIVATIONS = st.one_of(st.integers(2, 8), st.just(16))


@given(WEIGHTS, ACTIVATIONS, st.integers(2, 8))
def test_name_of_a_scheme_gives_the_scheme_back(weight_bits, act_bits, ends):
    scheme = Scheme(weight_bits, act_bits, ends)
    assert scheme_from_name(scheme.name, ends) == scheme
    assert scheme.weight_only == (act_bits == 16)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_scheme(name):
    assert scheme_from_name(name).name == name


@given(st.integers(2, 8))
def test_bits_mean_weights_alone(num_bits):
    assert scheme_from_bits(num_bits).name == f"w{num_bits}a8"


@pytest.mark.parametrize("name", ["int8", "w8", "w8a8 ", "W8A8", "w-8a8", "w8a8\n", "w111a8", ""])
def test_other_forms_are_refused_with_examples(name):
    with pytest.raises(ConfigError, match="want wNaM, for instance w8a8, w4a8"):
        scheme_from_name(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("w1a8", "--weight-bits 1: weights take 2 to 8 bits"),
        ("w16a8", "--weight-bits 16"),
        ("w8a9", "--act-bits 9: activations take 2 to 8 bits, or 16"),
        ("w8a1", "--act-bits 1"),
    ],
)
def test_widths_out_of_range_are_refused_by_their_option(name, message):
    with pytest.raises(ConfigError, match=message):
        scheme_from_name(name)


@pytest.mark.parametrize("num_bits", [1, 9, 16, -4])
def test_bits_out_of_range_are_refused(num_bits):
    with pytest.raises(ConfigError, match=f"--bits {num_bits}: want 2 to 8"):
        scheme_from_bits(num_bits)


@pytest.mark.parametrize("ends", [1, 9, 16])
def test_first_last_bits_out_of_range_are_refused(ends):
    with pytest.raises(ConfigError, match=f"--first-last-bits {ends}: want 2 to 8"):
        scheme_from_name("w8a8", ends)


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("w8a8", "Native: INT8"),
        ("w4a8", "TensorRT has no INT4 convolution"),
        ("w4a4", "no faster than w8a8"),
        ("w8a4", "no faster than w8a8"),
        ("w4a16", "Weight-only: 4-bit weights"),
    ],
)
def test_report_sentence_promises_what_the_hardware_does(name, phrase):
    assert phrase in scheme_from_name(name).runs_as
