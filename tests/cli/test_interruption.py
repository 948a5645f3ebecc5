"""Ctrl-C and SIGTERM reach the end of a command, whoever swallows or renames their exception."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from fdda_deploy import cli
from fdda_deploy.cli import interruption, main
from fdda_deploy.cli.interruption import WORDS


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """As a terminal starts programs: one started in the background is told to ignore SIGINT."""
    before = {number: signal.getsignal(number) for number in WORDS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def get(number: signal.Signals) -> None:
    """Sends this process a signal, and gives Python the moment to notice it."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


class Finalizer:
    """Loses what is raised while it is finalized, as every ``__del__`` does."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        get(self.number)


def finalized(number: signal.Signals) -> None:
    Finalizer(number)
    time.sleep(5)


def swallowed(number: signal.Signals) -> None:
    with contextlib.suppress(BaseException):
        get(number)
    time.sleep(5)


def renamed(number: signal.Signals) -> None:
    try:
        get(number)
    except BaseException as error:
        raise RuntimeError("a library says something else") from error


def as_our_error(number: signal.Signals) -> None:
    try:
        get(number)
    except BaseException as error:
        raise OSError(5, "Input/output error") from error


def during(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> int:
    """Runs a command that does ``act``."""

    class Command:
        def main(self, *_: object, **__: object) -> int:
            act()
            return 0

    monkeypatch.setattr(cli, "with_bare_flags", lambda _command: Command())
    return main(["doctor"])


@pytest.mark.parametrize("number", WORDS)
@pytest.mark.parametrize("act", [get, finalized, swallowed, renamed, as_our_error])
def test_a_signal_ends_the_command_with_its_own_code_and_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    act: Callable[[signal.Signals], None],
    number: signal.Signals,
) -> None:
    monkeypatch.setattr(interruption, "AGAIN_SECONDS", 0.05)
    assert during(monkeypatch, lambda: act(number)) == 128 + number
    assert capsys.readouterr() == ("", f"{WORDS[number]}\n")


def test_handlers_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(number) for number in WORDS]
    inside: list[object] = []
    during(monkeypatch, lambda: inside.extend(map(signal.getsignal, WORDS)))
    assert not set(before) & set(inside)
    assert [signal.getsignal(number) for number in WORDS] == before


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert during(monkeypatch, lambda: get(signal.SIGTERM)) == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_of_the_program_around_us_stays_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: got.append(number))
    try:
        assert during(monkeypatch, lambda: get(signal.SIGTERM)) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [signal.SIGTERM]
