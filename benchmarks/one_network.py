"""Forks of one process that build the same network: traced and translated once, for all of them."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable
from typing import Any

from fdda_deploy.cli import main
from fdda_deploy.pipeline.stages import context


def read_a_command() -> None:
    """Has this process import what reading a command takes: half a second in every fork else."""
    with contextlib.redirect_stderr(io.StringIO()):
        main(["export"])  # refused, for it names no network


def share_the_network() -> None:
    """Lets every fork take the trace and the graph that this process makes first."""
    context.trace = _made_once(context.trace)
    context.export_float = _made_once(context.export_float)


def _made_once(make: Callable[..., Any]) -> Callable[..., Any]:
    """Returns ``make``, whose first result is that of every call: there is one network here."""
    found: list[Any] = []

    @functools.wraps(make)
    def shared(*arguments: Any, **options: Any) -> Any:
        if not found:
            found.append(make(*arguments, **options))
        return found[0]

    return shared
