"""Fuzzing: how many cases a test tries, how long one may take, and how sound input is damaged.

Inputs come from one seed each: a damaged file costs less than hypothesis needs to draw it byte by
byte, so the same minute tries many more. ``HYPOTHESIS_PROFILE=explore`` tries ten times as many.
"""

from __future__ import annotations

import copy
import functools
import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fdda_deploy.errors import FddaDeployError

SECONDS = 2.0
"""Of CPU time in one thread: what no case may take, whatever else the machine is doing."""
EXPLORING = os.environ.get("HYPOTHESIS_PROFILE") == "explore"
SEEDS = st.integers(0, 2**48)

STRANGE = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e-320, 1e308),
    *("", " ", "0", "nan", "../x", "/etc/passwd", "a\x00b", "\x1b[2J", "<script>"),
    *("\ud800", "é" * 99),
    *([], {}, [[]], [{}], {"": None}, [None], ["a", 1], {"x": {"y": []}}, [0] * 40, "9" * 5000),
]
"""JSON values that some field of some format will not expect."""

TOKENS = (
    *(b"\x00", b"\xff" * 4, b"\n", b"\r\n", b'"', b"'", b"[" * 40, b"{" * 40, b"]]", b"}", b"="),
    *(b",", b".", b":", b"-", b"1e999", b"0x" + b"f" * 40, b"NaN", b"null", b"\xc3\x28", b"%s"),
    *(b"../", b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"\xef\xbb\xbf", b"\xe2\x80\xa8"),
    *(b" " * 30, b"9" * 4400),
)
"""Bytes that mean something to one parser or another."""


def fuzz(cases: int, *strategies: Any, **named: Any) -> Callable[[Callable[..., None]], Any]:
    """Returns a decorator: that many cases, each below `SECONDS`, marked and counted as fuzzing."""
    number = cases * 10 if EXPLORING else cases
    fixtures = HealthCheck.function_scoped_fixture  # a folder is used again, and written anew

    def decorate(test: Callable[..., None]) -> Any:
        @functools.wraps(test)
        def timed(*args: Any, **kwargs: Any) -> None:
            start = time.thread_time()
            test(*args, **kwargs)
            spent = time.thread_time() - start
            assert spent < SECONDS, f"one case took {spent:.1f} s"

        quick = [fixtures, HealthCheck.too_slow]
        judged = settings(max_examples=number, suppress_health_check=quick)(
            given(*strategies, **named)(timed)
        )
        return pytest.mark.fuzz(judged)

    return decorate


def outcome(act: Callable[[], object]) -> str:
    """Returns the message of our own error, or nothing; another exception is the test's failure."""
    try:
        act()
    except FddaDeployError as error:
        told = str(error)
        assert told, "an error without a word"
        assert "\n" not in told.strip(), f"more than one line: {told!r}"
        return told
    return ""


def damaged_bytes(sound: bytes, seed: int) -> bytes:
    """Returns ``sound`` after one to four cuts, flips, insertions, repeats or overwrites."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    data = bytearray(sound)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(6):
            case 0:
                del data[at:]
            case 1:
                del data[at : at + draw.choice((1, 2, 8, 64))]
            case 2:
                data[at:at] = draw.choice(TOKENS)
            case 3:
                data[at:at] = data[at : at + draw.choice((1, 4, 64, 600))]
            case 4:
                token = draw.choice(TOKENS)
                data[at : at + len(token)] = token
            case _:
                for place in range(at, min(len(data), at + draw.choice((1, 1, 4)))):
                    data[place] ^= 1 << draw.randrange(8)
    return bytes(data)


def damaged_json(sound: Any, seed: int) -> Any:
    """Returns a copy of ``sound`` in which one to three values or keys are strange or gone."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    document = copy.deepcopy(sound)
    for _ in range(draw.choice((1, 1, 2, 3))):
        places = list(_places(document))
        if not places:
            return copy.deepcopy(draw.choice(STRANGE))
        part, key = draw.choice(places)
        match draw.randrange(5):
            case 0:
                del part[key]
            case 1 if isinstance(part, dict):
                part[str(draw.choice(STRANGE))] = part.pop(key)
            case 2:
                part[key] = copy.deepcopy(draw.choice(places)[0])
            case _:
                part[key] = copy.deepcopy(draw.choice(STRANGE))
    return document


def _places(part: Any) -> Any:
    """Yields every (container, key) in a JSON document."""
    keys = list(part) if isinstance(part, dict) else range(len(part))
    for key in keys:
        yield part, key
        if isinstance(part[key], dict | list):
            yield from _places(part[key])
