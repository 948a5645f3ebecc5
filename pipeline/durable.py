"""Files of a run's folder: whole or absent, with digests, and disk errors in words."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from fdda_deploy.durable import TEMP_SUFFIX, sync, write_whole
from fdda_deploy.errors import WorkspaceError

STORAGE_ADVICE = {
    errno.ENOSPC: "the disk is full. Free some space, then run the same command to continue.",
    errno.EDQUOT: "the disk quota is full. Free some space, then run the same command to continue.",
    errno.EFBIG: "a file exceeds the size allowed (ulimit -f). Raise it, or choose another --out.",
    errno.EROFS: "the file system is read-only. Choose another --out.",
}
PATH_ADVICE = {
    errno.EACCES: "no permission to write. Choose another --out, or change its permissions.",
    errno.EPERM: "no permission to write. Choose another --out, or change its permissions.",
    errno.ENOTDIR: "a part of this path is a file, not a folder. Choose another --out.",
    errno.EEXIST: "this is a file, not a folder. Choose another --out.",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter --out.",
    errno.ENOLCK: "the file system cannot lock files. Choose an --out on a local disk.",
}


@contextlib.contextmanager
def explained(place_name: Path, *, only_storage: bool = False) -> Iterator[None]:
    """Turns an OSError inside the block into a WorkspaceError that says what to do.

    Args:
        place_name: The folder or file that the message names.
        only_storage: Let through what may as well come from reading the user's own files.

    Raises:
        WorkspaceError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        advice = STORAGE_ADVICE.get(error.errno or 0)
        if advice is None and only_storage:
            raise
        advice = advice or PATH_ADVICE.get(error.errno or 0) or f"{error.strerror or error}."
        raise WorkspaceError(f"{place_name}: {advice}") from error


def atomic_write(path: Path, content: bytes | str) -> None:
    """Writes ``content`` (text as UTF-8) so that ``path`` holds the old bytes or all the new ones.

    Raises:
        WorkspaceError: The write fails; ``path`` is as before and nothing is left beside it.
    """
    data = content.encode() if isinstance(content, str) else content
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)


def place(source: Path, target: Path, temp_folder: Path) -> None:
    """Makes ``target`` a hard link to ``source``, or a copy where links are not possible; atomic.

    A target that holds the same bytes already is left alone.

    Raises:
        OSError: The write fails; ``target`` is as before.
    """
    if same(source, target):
        return
    temp = temp_folder / f"{secrets.token_hex(6)}{TEMP_SUFFIX}"
    try:
        try:
            os.link(source, temp)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, temp)
            sync(temp)
        temp.replace(target)
    finally:
        temp.unlink(missing_ok=True)
    sync(target.parent)


def same(source: Path, target: Path) -> bool:
    """Returns whether ``target`` is a file of its own, no link, with the bytes of ``source``."""
    if target.is_symlink() or not target.is_file():
        return False
    if source.samefile(target):
        return True
    return source.stat().st_size == target.stat().st_size and sha256_of(source) == sha256_of(target)


def sha256_of(path: Path) -> str:
    """Returns the 64 hex digits of a file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
