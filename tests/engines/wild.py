"""What a parser says to wild input: nothing, or one of our own errors."""

from __future__ import annotations

from collections.abc import Callable

from fdda_deploy.errors import FddaDeployError


def refusal_of(act: Callable[[], object]) -> str:
    """Returns the message of our own error, or nothing where ``act`` succeeds."""
    try:
        act()
    except FddaDeployError as error:
        return str(error)
    return ""
