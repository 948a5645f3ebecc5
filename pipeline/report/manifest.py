"""The manifest: the size and sha256 of every file of a result folder, and their check."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

MANIFEST_SCHEMA = 1
"""Version of the manifest's form."""


def manifest(files: Mapping[str, Path], *, tool_version: str) -> dict[str, object]:
    """Returns ``{"schema", "tool_version", "files": {name: {"sha256", "bytes"}}}``, sorted by name.

    Args:
        files: Every file by its name in the folder, with forward slashes.
        tool_version: Version of fdda-deploy that wrote them.

    Raises:
        ValueError: A name is absolute or leaves the folder.
        OSError: A file cannot be read.
    """
    for name in files:
        if not _stays_inside(name):
            raise ValueError(f"manifest: {name!r} is not a name inside the folder.")
    entries = {name: _entry(files[name]) for name in sorted(files)}
    return {"schema": MANIFEST_SCHEMA, "tool_version": tool_version, "files": entries}


def verify(manifest: object, root: Path) -> list[str]:
    """Returns one line for each file below ``root`` that is not what ``manifest`` says it is.

    The manifest may come from anywhere: a name that leads out of ``root``, also through a link, is
    a problem and is not opened. Files that the manifest does not name are nobody's business here.

    Example:
        >>> verify({"schema": 1, "files": {"../etc/passwd": {}}}, Path("out"))
        ["'../etc/passwd': leads out of the folder"]
    """
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(manifest, dict) or not isinstance(files, dict):
        return ["manifest: wanted a table with the key 'files'"]
    if manifest.get("schema") != MANIFEST_SCHEMA:
        got = manifest.get("schema")
        return [f"manifest: schema {got!r}, this version reads {MANIFEST_SCHEMA}"]
    found = ((name, _problem(root, name, entry)) for name, entry in files.items())
    return [f"{name!r}: {problem}" for name, problem in found if problem]


def _entry(path: Path) -> dict[str, object]:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"sha256": digest, "bytes": stream.tell()}


def _stays_inside(name: object) -> bool:
    """Tells whether ``name`` is relative, without ``..``, on every operating system."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and not re.match(r"[A-Za-z]:", name)


def _problem(root: Path, name: object, entry: object) -> str | None:
    if not isinstance(name, str) or not _stays_inside(name):
        return "leads out of the folder"
    if not isinstance(entry, dict) or not {"sha256", "bytes"} <= entry.keys():
        return "wanted sha256 and bytes"
    try:
        got = _entry_below(root, name)
    # A loop of links is a RuntimeError before 3.13; half a character has no bytes.
    except (OSError, RuntimeError, UnicodeEncodeError) as error:
        return f"cannot be read: {type(error).__name__}"
    if isinstance(got, str):
        return got
    if got["bytes"] != entry["bytes"]:
        return f"has {got['bytes']} bytes, the manifest says {entry['bytes']}"
    return None if got["sha256"] == entry["sha256"] else "the sha256 differs"


def _entry_below(root: Path, name: str) -> dict[str, object] | str:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        return "leads out of the folder"
    return _entry(path) if path.is_file() else "missing"
