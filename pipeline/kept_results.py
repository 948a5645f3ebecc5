"""Which results of a stage are kept: the last used ones, in an order that asks no clock."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from fdda_deploy.durable import TEMP_SUFFIX

KEPT_KEYS = 3
"""Finished or unfinished results kept per stage: the present one and two to go back to."""

ORDER = ".used"
"""Beside the results of a stage: their names, the last used one last."""

_RESULT = re.compile(r"[0-9a-f]{12}")


def mark_used(home: Path, stem: str, temp_folder: Path) -> None:
    """Notes that a stage's result was used or begun.

    A clock that was wrong for a day would otherwise decide which results are the old ones.

    Args:
        home: The folder of the stage's results.
        stem: The result's name, 12 hex digits.
        temp_folder: Where the note is written before it takes its place.

    Raises:
        OSError: The note cannot be written.
    """
    order = _order(home)
    if order[-1:] == [stem]:
        return
    home.mkdir(parents=True, exist_ok=True)
    temp = temp_folder / f"{stem}{TEMP_SUFFIX}"
    names = [*(name for name in order if name != stem), stem]
    try:
        temp.write_text("\n".join(names), encoding="ascii")
        temp.replace(home / ORDER)
    finally:
        temp.unlink(missing_ok=True)


def prune(home: Path) -> None:
    """Removes the results of a stage that were not among the last used; foreign files stay."""
    last = {name: place for place, name in enumerate(_order(home))}
    stems = {path.stem for path in home.iterdir() if _is_result(path)}
    for stem in sorted(stems, key=lambda name: last.get(name, -1), reverse=True)[KEPT_KEYS:]:
        shutil.rmtree(home / stem, ignore_errors=True)
        shutil.rmtree(home / f"{stem}.partial", ignore_errors=True)


def _is_result(path: Path) -> bool:
    return path.suffix in {"", ".partial"} and _RESULT.fullmatch(path.stem) is not None


def _order(home: Path) -> list[str]:
    """Returns the names in the note; one that is missing or damaged says nothing."""
    try:
        lines = (home / ORDER).read_bytes().decode("ascii", errors="replace").split("\n")
    except OSError:
        return []
    return [name for name in lines if _RESULT.fullmatch(name)]
