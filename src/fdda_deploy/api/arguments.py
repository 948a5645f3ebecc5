"""What every verb takes and raises: written once here, shown by ``help()`` on each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Verb = TypeVar("Verb", bound=Callable[..., Any])

_SHARED = """\
Args:
    model: ``digits``, a torchvision name, ``timm:NAME``, ``package.module:callable`` or
        ``path/file.py:callable``; None takes the one in ``config``.
    config: A TOML file with any of the settings, for instance a result folder's
        ``config.toml``; settings given here win.
    progress: Show a bar with rate and remaining time on stderr, where that is a terminal.
    settings: As the options of ``fdda-deploy {verb}``, with underscores.

Raises:
    FddaDeployError: A setting is unknown (the nearest is named) or wrong, or a stage refused;
        finished stages stay, and the same call goes on from them."""


def takes_settings(verb: Verb) -> Verb:
    """Returns the verb, its docstring completed by what it takes and raises as every verb does.

    The sections go before the docstring's example, where it has one.
    """
    if verb.__doc__ is not None:  # python -OO has none
        own, heading, example = inspect.cleandoc(verb.__doc__).partition("\n\nExample:")
        verb.__doc__ = f"{own}\n\n{_SHARED.format(verb=verb.__name__)}{heading}{example}\n"
    return verb
