"""What a C++ library said, folded into part of a one-line error message."""

from __future__ import annotations

import re

SOURCE_PLACE = re.compile(r"\s*\bIn \S+ at \S+:\d+")
"""TensorRT ends each message with its own C++ function, file and line."""
ORT_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : (\w+) : ")
LONGEST = 400


def one_line(text: str) -> str:
    r"""Returns ``text`` in one line of at most 400 characters, without C++ places or a full stop.

    Example:
        >>> one_line("Bad node.\n  In checkType at /src/node.cpp:456")
        'Bad node'
    """
    text = ORT_PREFIX.sub("", SOURCE_PLACE.sub("", text))
    folded = " ".join(text.split())
    if len(folded) > LONGEST:
        folded = folded[: LONGEST - 3] + "..."
    return folded if folded.endswith("...") else folded.rstrip(". ")
