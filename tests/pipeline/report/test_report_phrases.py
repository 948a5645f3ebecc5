"""Numbers are said the same way everywhere, and nobody's measurement is invented."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.pipeline.report import phrases

SAYERS = [
    phrases.decimal,
    phrases.significant,
    phrases.percent,
    phrases.points,
    phrases.size,
    phrases.duration,
]


@pytest.mark.parametrize("say", SAYERS)
def test_none_is_not_measured(say: object) -> None:
    assert callable(say)
    assert say(None) == "not measured"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (phrases.decimal(-0.2), "\u22120.20"),
        (phrases.decimal(-0.001), "0.00"),
        (phrases.decimal(12345.678, 1), "12,345.7"),
        (phrases.decimal(math.inf), "not finite"),
        (phrases.significant(0), "0"),
        (phrases.significant(0.03124), "0.0312"),
        (phrases.significant(1250.4), "1,250"),
        (phrases.significant(1.24e-5), "1.24e\u221205"),
        (phrases.percent(98.664), "98.66 %"),
        (phrases.points(-1), "1.00 point"),
        (phrases.points(0.17), "0.17 points"),
        (phrases.interval(-0.2, 0.54), "\u22120.20 to 0.54"),
        (phrases.interval(None, 0.54), "not measured"),
        (phrases.size(1), "1 byte"),
        (phrases.size(999), "999 bytes"),
        (phrases.size(706_816), "707 kB"),
        (phrases.size(999_600), "1.00 MB"),
        (phrases.size(14_520_000), "14.5 MB"),
        (phrases.size(2_800_000_000), "2.80 GB"),
        (phrases.factor(706_816, 208_114), "3.4\u00d7"),
        (phrases.factor(100, None), None),
        (phrases.factor(100, 0), None),
        (phrases.duration(0.62), "0.62 s"),
        (phrases.duration(12.34), "12.3 s"),
        (phrases.duration(59.97), "1 min 00 s"),
        (phrases.duration(72.4), "1 min 12 s"),
        (phrases.duration(3599.8), "1 h 00 min"),
        (phrases.duration(7500), "2 h 05 min"),
        (phrases.counted(1, "image"), "1 image"),
        (phrases.counted(1200, "image"), "1,200 images"),
        (phrases.counted(None, "image"), "an unknown number of images"),
    ],
)
def test_numbers_read_as_people_write_them(text: str | None, want: str | None) -> None:
    assert (text.replace(phrases.SPACE, " ") if text else text) == want


@given(st.text())
def test_plain_text_is_one_encodable_line_that_moves_no_cursor(text: str) -> None:
    said = phrases.plain(text)
    assert len(said) == len(text)
    assert len(said.splitlines()) <= 1
    assert said.encode("utf-8").decode() == said
    assert not set(said) & {"\x1b", "\x07", "\x00", "\x7f", "\u202e", "\u2066"}


@given(st.floats(0, 1e15))
def test_sizes_never_have_four_digits_before_the_unit_below_terabytes(num_bytes: float) -> None:
    amount = phrases.size(num_bytes).split(phrases.SPACE)[0].replace(",", "")
    assert float(amount) < 1000 or num_bytes >= 1e12
