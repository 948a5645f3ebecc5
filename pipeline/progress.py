"""Progress of long work: a bar with rate and remaining time on a terminal, silence elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich import progress as bars
from rich.console import Console
from rich.text import Text

Progress = Callable[[int, int, str], None]
"""Called as ``progress(done, total, text)``; cheap enough to be called at every step."""

REFRESH_SECONDS = 0.1
WORTH_A_LINE_SECONDS = 1.0


def ignore_progress(_done: int, _total: int, _text: str) -> None:
    """Is the :data:`Progress` of callers that show none."""


@contextlib.contextmanager
def stage_progress(console: Console, label: str = "") -> Iterator[Progress]:
    """Shows a bar while the block runs and calls its progress; nothing where no one watches.

    A stage that took a second or more leaves one line, its label and its time.

    Args:
        console: Writes to stderr; where that is no terminal, or is quiet, nothing is written.
        label: Stands before the text of each call, for instance the stage's name.

    Yields:
        The callback. A ``total`` of 0 means that the end is not known.
    """
    if not console.is_terminal or console.is_dumb_terminal or console.quiet:
        yield ignore_progress
        return
    started = time.monotonic()
    with _bar(console) as bar:
        task = bar.add_task(label, total=None)
        shown_at = -REFRESH_SECONDS

        def show(done: int, total: int, text: str) -> None:
            nonlocal shown_at
            now = time.monotonic() - started
            if now - shown_at < REFRESH_SECONDS and done != total:
                return
            shown_at = now
            words = f"{label}  {text}" if label and text else label or text
            bar.update(task, completed=done, total=total or None, description=words)

        yield show
    seconds = time.monotonic() - started
    if label and seconds >= WORTH_A_LINE_SECONDS:
        console.print(f"{label}  {seconds:.1f} s", markup=False, highlight=False)


def rate_in_words(steps_per_second: float | None) -> str:
    """Returns for instance ``12.5/s`` or ``3.2 s each``; nothing while it is not known.

    Example:
        >>> rate_in_words(0.25)
        '4.0 s each'
    """
    if not steps_per_second:
        return ""
    slow = steps_per_second < 1
    return f"{1 / steps_per_second:.1f} s each" if slow else f"{steps_per_second:.1f}/s"


class _RateColumn(bars.ProgressColumn):
    """Steps per second, or seconds per step where they are slow."""

    def render(self, task: bars.Task) -> Text:
        return Text(rate_in_words(task.finished_speed or task.speed))


def _bar(console: Console) -> bars.Progress:
    return bars.Progress(
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(bar_width=24),
        bars.MofNCompleteColumn(),
        _RateColumn(),
        bars.TimeRemainingColumn(),
        console=console,
        transient=True,
        refresh_per_second=5,
    )
