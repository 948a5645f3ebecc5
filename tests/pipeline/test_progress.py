"""Progress: a bar with rate and remaining time for who watches, silence and no cost otherwise."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from fdda_deploy.pipeline import progress as module
from fdda_deploy.pipeline.progress import ignore_progress, rate_in_words, stage_progress


def terminal(**settings: bool) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, width=100, **settings), stream


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_a_terminal_sees_label_text_count_rate_and_remaining_time() -> None:
    console, stream = terminal()
    with stage_progress(console, "synthesize") as progress:
        for done in range(1, 5):
            progress(done, 40, "loss [0.5]")
            time.sleep(1.5 * module.REFRESH_SECONDS)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "synthesize  loss [0.5]" in text
    assert re.search(r"[1-4]/40 +\d+\.\d/s 0:00:\d\d", text)


@pytest.mark.parametrize(
    ("rate", "words"),
    [(None, ""), (0.0, ""), (12.49, "12.5/s"), (1.0, "1.0/s"), (0.25, "4.0 s each")],
)
def test_slow_steps_are_told_in_seconds_each(rate: float | None, words: str) -> None:
    assert rate_in_words(rate) == words


@pytest.mark.parametrize("reason", ["no terminal", "quiet", "dumb"])
def test_nothing_is_written_where_no_one_watches(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, stream = terminal(quiet=reason == "quiet")
    if reason == "no terminal":
        console = Console(file=stream)
    if reason == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    with stage_progress(console, "load") as progress:
        progress(1, 2, "a")
    assert progress is ignore_progress
    assert stream.getvalue() == ""


def test_no_color_takes_the_colours_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def colours() -> bool:
        console, stream = terminal()
        with stage_progress(console) as progress:
            progress(2, 2, "a")
        return re.search(r"\x1b\[[0-9;]*(3[0-7]|38)[0-9;]*m", stream.getvalue()) is not None

    assert colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours()


def test_only_a_stage_that_took_long_leaves_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def last_line() -> str:
        console, stream = terminal(no_color=True)
        with stage_progress(console, "load"):
            pass
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).split("\n")[-2]

    assert not re.search(r"load  \d", last_line())
    monkeypatch.setattr(module, "WORTH_A_LINE_SECONDS", 0.0)
    assert re.search(r"load  \d+\.\d s$", last_line())


def test_an_error_inside_passes_and_the_terminal_is_given_back() -> None:
    console, stream = terminal()

    def fails() -> None:
        with stage_progress(console, "load") as progress:
            progress(0, 0, "no end known")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert stream.getvalue().count("\x1b[?25h") == 1  # the cursor is shown again


def test_a_hundred_thousand_calls_cost_next_to_nothing() -> None:
    console, _ = terminal()
    with stage_progress(console) as progress:
        started = time.process_time()
        for done in range(100_000):
            progress(done, 200_000, "training")
        assert time.process_time() - started < 1.0


def test_calls_in_quick_succession_are_not_drawn_unless_they_finish() -> None:
    def drawn(second: int) -> str:
        console, stream = terminal()
        with stage_progress(console) as progress:
            progress(1, 3, "first")
            progress(second, 3, "second")
        return stream.getvalue()

    assert "second" not in drawn(2)
    assert "second" in drawn(3)
