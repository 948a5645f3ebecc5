"""How numbers are said: units, signs, intervals, and "not measured" for what nobody measured."""

from __future__ import annotations

import math
import unicodedata

NOT_MEASURED = "not measured"
PORTABLE = "portable plan, built without a GPU"
MINUS = "\u2212"
TIMES = "\u00d7"
SPACE = "\u00a0"
"""Between a number and its unit, so that a line never breaks there."""
_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that hide, reorder or break text: controls, formats, surrogates, breaks."""


def plain(text: str) -> str:
    r"""Returns ``text`` on one line with every control or invisible character as U+FFFD.

    File and class names come from outside: what they hold may neither move a terminal's cursor
    nor turn the writing direction, nor be impossible to encode.

    Example:
        >>> plain("cat\x1b[31m")
        'cat\ufffd[31m'
    """
    return "".join(_visible(char) for char in text)


def decimal(value: float | None, digits: int = 2) -> str:
    """Returns a number with a typographic minus and grouped thousands: 1,250.00 or -0.20."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:,.{digits}f}"
    is_zero = not text.strip("-0.,")
    return text.lstrip("-") if is_zero else text.replace("-", MINUS)


def significant(value: float | None) -> str:
    """Returns about three significant digits: ``1.24e-05``, ``0.0312`` or ``1,250``."""
    if value is None:
        return NOT_MEASURED
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}".replace("-", MINUS)
    digits = 0 if not value or abs(value) >= 100 else 2 - math.floor(math.log10(abs(value)))
    return decimal(value, digits)


def percent(value: float | None) -> str:
    """Returns for instance ``98.66 %``."""
    return NOT_MEASURED if value is None else f"{decimal(value)}{SPACE}%"


def points(value: float | None) -> str:
    """Returns for instance ``1 point`` or ``0.17 points``, without a sign."""
    if value is None:
        return NOT_MEASURED
    number = decimal(abs(value))
    return f"{number}{SPACE}point{'' if number == '1.00' else 's'}"


def interval(low: float | None, high: float | None) -> str:
    """Returns for instance ``0.20 to 0.54``."""
    if low is None or high is None:
        return NOT_MEASURED
    return f"{decimal(low)} to {decimal(high)}"


def size(num_bytes: float | None) -> str:
    """Returns bytes in decimal units with three digits, for instance ``707 kB`` or ``14.5 MB``."""
    if num_bytes is None:
        return NOT_MEASURED
    for unit_bytes, unit in _SIZES:
        amount = num_bytes / unit_bytes
        if amount >= 0.9995:  # 999.5 kB and more would round to 1000 kB
            digits = 2 if amount < 9.995 else 1 if amount < 99.95 else 0
            return f"{amount:,.{digits}f}{SPACE}{unit}"
    return f"{num_bytes:,.0f}{SPACE}byte{'' if num_bytes == 1 else 's'}"


def factor(before: float | None, after: float | None) -> str | None:
    """Returns ``before / after`` as 3.4 and a times sign; None if either is absent."""
    return f"{before / after:.1f}{TIMES}" if before and after else None


def change_of_size(before: float, after: float) -> str:
    """Returns ``3.4x smaller``, ``1.5x larger`` (with a times sign) or ``the same size``."""
    smaller, larger = factor(before, after), factor(after, before)
    if smaller is None or larger is None or smaller == larger:
        return "the same size"
    return f"{smaller} smaller" if after < before else f"{larger} larger"


def duration(seconds: float | None) -> str:
    """Returns for instance ``0.42 s``, ``12.3 s``, ``1 min 12 s`` or ``2 h 05 min``."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 59.95:
        return f"{seconds:.{2 if seconds < 9.995 else 1}f}{SPACE}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{SPACE}min {whole % 60:02d}{SPACE}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}{SPACE}h {minutes % 60:02d}{SPACE}min"


def counted(number: int | None, noun: str) -> str:
    """Returns for instance ``1 image``, ``1,200 images`` or ``an unknown number of images``."""
    if number is None:
        return f"an unknown number of {noun}s"
    return f"{number:,}{SPACE}{noun}{'' if number == 1 else 's'}"


def _visible(char: str) -> str:
    if char in "\t\n\r":
        return " "
    return "\ufffd" if unicodedata.category(char) in _INVISIBLE else char
