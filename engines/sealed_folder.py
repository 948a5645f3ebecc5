"""A folder whose every file is named with its digest: what was changed, is missing, or was added.

Names and folder may come from anywhere. Nothing is opened through a link, and nothing outside the
folder. A digest shows that the files are the ones the manifest was written for; it cannot show who
wrote the manifest.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from fdda_deploy.errors import EngineError

LOCAL = "local"
"""The one sub-folder that is no part of a package: what a machine builds for itself."""
BYTECODE = "__pycache__"
"""Python leaves it beside a script that is imported; it is never executed from here."""


def entry_of(path: Path) -> dict[str, Any]:
    """Returns ``{"sha256": 64 hex digits, "bytes": n}`` of a file.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"sha256": digest, "bytes": stream.tell()}


def changed_files(root: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns one line for each of ``files`` that is not below ``root`` as they say.

    Args:
        root: The folder.
        files: sha256 and bytes by name, with forward slashes.
    """
    found = ((name, _problem(root, name, entry)) for name, entry in files.items())
    return [f"{name}: {problem}" for name, problem in found if problem]


def added_files(root: Path, known: Iterable[str]) -> list[str]:
    """Returns one line for each file or link below ``root`` that is not among ``known``."""
    names = set(known)
    return [f"{name}: not in the manifest" for name in names_below(root) if name not in names]


def names_below(root: Path) -> Iterator[str]:
    """Yields every file and link below ``root`` but for ``local/`` and bytecode, sorted."""
    for folder, subfolders, files in os.walk(root):
        place = Path(folder)
        top = place == root
        linked = [name for name in subfolders if (place / name).is_symlink()]
        ours = [name for name in subfolders if name not in linked and name != BYTECODE]
        subfolders[:] = sorted(name for name in ours if not (top and name == LOCAL))
        for name in sorted([*files, *linked]):
            yield (place / name).relative_to(root).as_posix()


def read_inside(root: Path, name: str, *, limit: int | None = None) -> bytes:
    """Returns the bytes of one file of the folder.

    Args:
        root: The folder.
        name: Relative, forward slashes.
        limit: Bytes beyond which the file is refused.

    Raises:
        EngineError: The name leads out of the folder, through a link, to no file, or to one that
            is too large or cannot be read.
    """
    path = _inside(root, name)
    if path is None:
        raise EngineError(f"{root}: {name!r} leads out of the folder. Do not use this package.")
    try:
        if limit is not None and path.stat().st_size > limit:
            raise EngineError(
                f"{path}: {path.stat().st_size:,} bytes, at most {limit:,} are read. "
                "Get the package again."
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file system encodes
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise EngineError(f"{path}: cannot be read ({reason}). Get the package again.") from error


def _inside(root: Path, name: str) -> Path | None:
    """Returns the path of ``name``, or None where it is no regular file in ``root`` itself."""
    parts = PurePosixPath(name).parts
    risky = not parts or "\0" in name or "\\" in name or ":" in name
    if risky or name.startswith("/") or ".." in parts:
        return None
    path = root
    for part in parts:
        path /= part
        try:
            if path.is_symlink():
                return None
        except OSError:  # longer than any file's name
            return None
    return path


def _problem(root: Path, name: str, entry: Mapping[str, Any]) -> str | None:
    path = _inside(root, name)
    if path is None:
        return "leads out of the folder"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be read for ever
            return "not a file"
        if status.st_size != entry["bytes"]:
            return f"changed: {status.st_size:,} bytes, the manifest says {entry['bytes']:,}"
        same = entry_of(path)["sha256"] == entry["sha256"]
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError) as error:  # ValueError: no file system encodes such a name
        return f"cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}"
    return None if same else "changed: its sha256 differs"
