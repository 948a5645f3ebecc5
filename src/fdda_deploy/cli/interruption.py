"""Ctrl-C and SIGTERM end a command in one way, whatever a library makes of them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

WORDS = {
    signal.SIGINT: "interrupted; run the same command to continue",
    signal.SIGTERM: "terminated; run the same command to continue",
}
"""What is said last, by signal; the exit code is 128 and the signal's number."""

AGAIN_SECONDS = 1.0
"""Until a signal comes again by itself: an exception that is raised in a finalizer, or in what a
C++ library calls (a builder's log), is lost there."""


class Stopped(BaseException):
    """Raised where the command happens to be; no library catches it, as it is not theirs."""


@contextlib.contextmanager
def heeded(heard: list[signal.Signals]) -> Iterator[None]:
    """Raises `Stopped` in the block at Ctrl-C or SIGTERM, and puts back what it changed.

    A signal that this process was started to ignore (``nohup``, a background job) stays ignored,
    and one that a program around us handles stays its own.

    Args:
        heard: Gets each signal that comes: what then ends the block ends it because of them.
    """
    if threading.current_thread() is not threading.main_thread():  # no signal comes here
        yield
        return
    timers: list[threading.Timer] = []
    over = False

    def hear(number: int, _frame: FrameType | None) -> None:
        if over:
            return
        heard.append(signal.Signals(number))
        timer = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number))
        timer.daemon = True
        timers.append(timer)
        timer.start()
        raise Stopped

    before = {number: signal.getsignal(number) for number in WORDS}
    usual = (signal.SIG_DFL, signal.default_int_handler)
    mine = [number for number, handler in before.items() if handler in usual]
    with _silent_losses():
        for number in mine:
            signal.signal(number, hear)
        try:
            yield
        finally:
            over = True
            for timer in timers:
                timer.cancel()
            for number in mine:
                signal.signal(number, before[number])


@contextlib.contextmanager
def _silent_losses() -> Iterator[None]:
    """Keeps Python from printing that a `Stopped` was lost in a finalizer: it comes again."""
    usual = sys.unraisablehook

    def tell(unraisable: Any) -> None:
        if unraisable.exc_type is not Stopped:
            usual(unraisable)

    sys.unraisablehook = tell
    try:
        yield
    finally:
        sys.unraisablehook = usual
