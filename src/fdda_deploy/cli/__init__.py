"""The command line: parse, call, print one result, and turn every failure into one line."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import fdda_deploy
from fdda_deploy.cli import (
    benching,
    caching,
    checking,
    comparing,
    packaging,
    refitting,
    schemas,
    stages,
    surroundings,
    synthesizing,
)
from fdda_deploy.cli.flags import with_bare_flags
from fdda_deploy.cli.interruption import WORDS, heeded
from fdda_deploy.cli.options import UsageFaultError
from fdda_deploy.config.values import near, plain_name
from fdda_deploy.errors import FddaDeployError, MemoryShortageError
from fdda_deploy.pipeline.memory import is_out_of_memory
from fdda_deploy.pipeline.report.phrases import plain

__all__ = ["app", "main"]

app = typer.Typer(
    name="fdda-deploy",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=stages.examples("build digits --bits 4", "doctor"),
)
app.add_typer(stages.app)
app.add_typer(benching.app)
app.add_typer(comparing.app)
app.add_typer(synthesizing.app)
app.add_typer(checking.app)
app.add_typer(caching.app)
app.add_typer(packaging.app)
app.add_typer(refitting.app)
app.add_typer(schemas.app)
app.add_typer(surroundings.app)

INTERRUPTED = WORDS[signal.SIGINT]
GARBAGE_THRESHOLDS = 50_000, 20, 100
"""Tracing and exporting make a million small objects that live on. Python's own thresholds (700,
10, 10) look through them again and again: 2 of the 17 seconds of a small `quantize`."""
CLICK_ERROR = typer.BadParameter.__mro__[2]
"""Root of click's usage errors; newer typers carry click inside, older ones import it."""


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"fdda-deploy {fdda_deploy.__version__}\n")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version", is_eager=True, callback=_print_version, help="Print the version and stop."
    ),
]


@app.callback()
def root(*, version: Version = False) -> None:
    """From a trained vision network and few or no images to a low-bit engine, with the evidence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: As on the command line, without the program; None takes those.

    Returns:
        The exit code: 0 done, 1 failed (one line on stderr says why), 2 wrong usage,
        130 interrupted (Ctrl-C), 143 terminated (SIGTERM).
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    heard: list[signal.Signals] = []
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    try:
        with heeded(heard):
            return _run(words, heard)
    except BaseException:
        if not heard:
            raise
    sys.stderr.write(f"{WORDS[heard[0]]}\n")
    return 128 + heard[0]


def _run(words: list[str], heard: Sequence[signal.Signals]) -> int:
    """Runs one command and returns its exit code; raises what a signal that was heard made."""
    try:
        command = with_bare_flags(typer.main.get_command(app))
        code = command.main(words, prog_name="fdda-deploy", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, for instance `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        line, code = _explained(error)
        if line is None or heard:  # a library made an error of the signal
            raise
        sys.stderr.write(f"error: {plain(' '.join(line.split()))}\n")
    if code == 130:
        sys.stderr.write(f"{INTERRUPTED}\n")
    return int(code or 0)


def _explained(error: Exception) -> tuple[str | None, int]:
    """Returns one line and the exit code, or no line for what can only be a bug of ours."""
    if isinstance(error, CLICK_ERROR):
        command = getattr(getattr(error, "ctx", None), "command_path", "fdda-deploy")
        return f"{_usage_fault(error)} (see {command} --help)", 2
    if isinstance(error, UsageFaultError):
        return str(error), 2
    if is_out_of_memory(error) and not isinstance(error, MemoryShortageError):
        return "out of memory. Lower --batch-size, or close other programs; then run it again.", 1
    if isinstance(error, FddaDeployError):
        return str(error), 1
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        then = " Free some space, then run it again." if error.errno == errno.ENOSPC else ""
        return f"{where}{error.strerror or error}.{then}", 1
    return None, 1


def _usage_fault(error: Any) -> str:
    """Returns click's sentence on a wrong command line, with the nearest option where one is."""
    context = getattr(error, "ctx", None)  # click's root error has none
    if type(error).__name__ != "NoSuchOption" or context is None:
        return str(error.format_message())
    known = [name for parameter in context.command.params for name in parameter.opts]
    known += [name for parameter in context.command.params for name in parameter.secondary_opts]
    options = [name for name in known if name.startswith("--")]
    option = str(error.option_name)
    return f"No such option: {plain_name(option)}.{near(option, options)}"
