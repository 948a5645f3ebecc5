"""The members of a tar that anybody may have written: listed with bounds, or refused in one line.

Python's own reader believes a header's size. A negative one sends it back to the header that it has
just read, for ever (CVE-2025-8194, mended in 3.11.14); one of a terabyte is asked for at once; and
a header that is damaged ends the list without a word, as if the archive had been shorter.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Self

from fdda_deploy.errors import DataError


def members_of(path: Path) -> list[tarfile.TarInfo]:
    """Returns every member of an uncompressed tar, none of it read.

    Raises:
        DataError: It is compressed, damaged, cut short, or lies about the size of a member.
    """
    try:
        with tarfile.open(path, "r:", tarinfo=_bounded(path.stat().st_size)) as archive:
            members = archive.getmembers()
            end = archive.offset
        _require_end(path, end)
    except Exception as error:  # a hostile header can raise any parser's error
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(
            f"{path}: not a whole, plain tar ({reason}). It is read in place: unzip a .gz first."
        ) from error
    return members


def _bounded(num_bytes: int) -> type[tarfile.TarInfo]:
    """Returns a reader of headers that believes no size below 0 or above the archive's own."""

    class Bounded(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            info = super().frombuf(buf, encoding, errors)
            if not 0 <= info.size <= num_bytes:
                raise tarfile.ReadError(f"a member of {info.size:,} bytes")
            return info

        @classmethod
        def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
            start = tarfile.offset
            info = super().fromtarfile(tarfile)
            # An extended header may give another size than the one checked above.
            if not 0 <= info.size <= num_bytes or tarfile.offset <= start:
                raise ValueError("a member whose size leads back")
            return info

    return Bounded


def _require_end(path: Path, end: int) -> None:
    """Refuses an archive whose list ended before a header that could not be read."""
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"damaged header at byte {end:,}")
