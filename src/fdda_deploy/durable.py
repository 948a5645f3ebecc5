"""Files that are whole or as they were before: the one atomic write that every floor uses."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

TEMP_SUFFIX = ".fdda-temp"
"""Ends the name of every file in the making; what a kill leaves of them is swept."""


def write_whole(path: Path, data: bytes) -> None:
    """Writes ``data`` so that ``path`` holds either all of it or what it held before.

    The bytes go to a temporary file in the same folder, reach the disk, and take the name in one
    step; a write that fails leaves nothing beside it. The folder must exist.

    Raises:
        OSError: The folder is missing, full, or not writable.
        ValueError: The path holds a null character.
    """
    temp = path.parent / f".{secrets.token_hex(6)}{TEMP_SUFFIX}"
    try:
        with temp.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
