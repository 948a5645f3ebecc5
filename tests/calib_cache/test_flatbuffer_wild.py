"""A flatbuffer that lies about itself gives pairs or a CalibrationError, with little memory."""

from __future__ import annotations

import struct
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.calib_cache.flatbuffer import parse_pairs, render_pairs
from fdda_deploy.errors import CalibrationError

SOUND = render_pairs([("input", "2.64"), ("layer1/Relu", "6.0"), ("logits", "21.5")])
COUNT_AT, FIRST_ENTRY_AT = 20, 24
PADDING = 4
"""Zeros behind the last text, which nobody reads."""


def outcome(data: bytes) -> list[tuple[str, str]] | str:
    try:
        return parse_pairs(data)
    except CalibrationError as error:
        return str(error)


@pytest.mark.fuzz
@given(st.binary(max_size=200))
def test_wild_bytes_give_pairs_or_a_calibration_error(data: bytes) -> None:
    assert "\n" not in outcome(data)


@pytest.mark.fuzz
@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1))
def test_flipped_bytes_give_pairs_or_a_calibration_error(flips: list[tuple[int, int]]) -> None:
    data = bytearray(SOUND)
    for at, value in flips:
        data[at] = value
    assert "\n" not in outcome(bytes(data))


@pytest.mark.fuzz
@given(st.integers(0, len(SOUND) - PADDING - 1))
def test_a_truncated_file_is_refused(length: int) -> None:
    found = outcome(SOUND[:length])
    assert isinstance(found, str)
    assert "truncated" in found


def test_a_claim_of_two_billion_entries_is_refused_unread() -> None:
    data = bytearray(SOUND)
    data[COUNT_AT : COUNT_AT + 4] = struct.pack("<I", 2**31)
    assert "2147483648 entries, at most 100000" in str(outcome(bytes(data)))


def test_entries_that_share_one_long_text_do_not_fill_the_memory() -> None:
    count = 90_000
    one = render_pairs([("k" * 4000, "v" * 4000)])
    table = len(one) - 12 - 2 * (4 + 4000 + 4)
    head, body = bytearray(one[:COUNT_AT]), one[FIRST_ENTRY_AT + 4 :]
    shift = 4 * (count - 1)
    slots = [table + shift - (COUNT_AT + 4 + 4 * index) for index in range(count)]
    data = bytes(head) + struct.pack(f"<I{count}I", count, *slots) + body
    tracemalloc.start()
    start = time.thread_time()
    found = outcome(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "characters of text" in str(found)
    assert peak < 200 * 2**20
    assert time.thread_time() - start < 10


@pytest.mark.parametrize("pairs", [[], [("", "")], [("ä" * 9, "1.0"), ("ä" * 9, "2.0")]])
def test_pairs_read_back_in_order(pairs: list[tuple[str, str]]) -> None:
    assert parse_pairs(render_pairs(pairs)) == pairs


def test_a_text_that_is_not_utf8_is_named_by_its_place() -> None:
    data = SOUND.replace(b"logits", b"\xff\xfe\xff\xfe\xff\xfe")
    assert "is not UTF-8" in str(outcome(data))
