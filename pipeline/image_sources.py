"""Where images come from: a folder, a tar, an npz or the embedded digits, listed but not decoded.

Files are untrusted: an archive is read in place, never extracted, and refused as a whole if one of
its members is a link or points outside.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from fdda_deploy.errors import DataError
from fdda_deploy.pipeline.image_arrays import images_from_npz
from fdda_deploy.pipeline.tar_members import members_of

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
DIGITS = "digits"

Encoded = bytes
"""The bytes of an image file, as opposed to pixels that an npz holds already."""


@dataclass(frozen=True, eq=False)
class Listing:
    """Every image of a source by name, none decoded yet.

    Attributes:
        origin: What the user named, for messages and reports.
        names: One per image.
        read: Index to the encoded file, or to pixels ``(H, W, C)`` or ``(H, W)`` uint8.
        folders: Per image the class folder's name; None where there are no class folders.
        labels: ``(n,)`` int64 where the source has numbers, else None.
        class_names: Where the source itself knows them (digits).
        content_digest: SHA-256 of names and contents.
        recipe: Name of the one that synthesized them; None for real images.
    """

    origin: str
    names: tuple[str, ...]
    read: Callable[[int], Encoded | NDArray[np.uint8]]
    content_digest: str
    folders: tuple[str, ...] | None = None
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None
    recipe: str | None = None


def listing_from_source(source: str) -> Listing:
    """Returns the images that ``source`` names.

    Raises:
        DataError: There is no such source, it holds no image, or it is damaged or hostile.
    """
    try:
        return _listing(source)
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror or error}).") from error


def _listing(source: str) -> Listing:
    if source.partition(":")[0] == DIGITS and not Path(source).exists():
        return _digits(source)
    file_name, _, part = source.partition("#")
    path = Path(source) if Path(source).exists() else Path(file_name)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise DataError(
            f"{path}: no such folder or file{near(path.name, _siblings(path))}. Name a folder of "
            "images, a .tar, an .npz, digits:train or digits:test."
        )
    if path.suffix == ".npz":
        return _npz(path, part)
    if path.suffix == ".tar":
        return _tar(path)
    raise DataError(
        f"{path}: a {path.suffix or 'nameless'} file is no image source. Name a folder of images, "
        "a .tar of a folder per class, or an .npz with x and y."
    )


def near(name: str, known: Iterable[str]) -> str:
    """Returns ``" (did you mean a, b?)"``, or nothing where no known name is near."""
    close = get_close_matches(name, list(known), n=3)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def _digits(source: str) -> Listing:
    from fdda_deploy.pipeline.digits.split import digit_images

    part = source.partition(":")[2]
    if part not in {"train", "test"}:
        raise DataError(f"{source}: the embedded digits are digits:train and digits:test.")
    pixels, labels = digit_images("train" if part == "train" else "test")
    return Listing(
        origin=source,
        names=tuple(f"{source}[{index}]" for index in range(len(pixels))),
        read=lambda index: pixels[index],
        content_digest=_digest([pixels.tobytes(), labels.tobytes()]),
        labels=labels,
        class_names=tuple("0123456789"),
    )


def _folder(root: Path) -> Listing:
    entries = sorted(entry for entry in root.iterdir() if not _hidden(entry.name))
    flat = [entry for entry in entries if entry.is_file() and _is_image(entry.name)]
    classes = [entry for entry in entries if entry.is_dir()]
    if flat and classes:
        raise DataError(
            f"{root}: holds images ({flat[0].name}) beside folders ({classes[0].name}). Use either "
            "one flat folder or one folder per class."
        )
    found = [(path, None) for path in flat] + [
        (path, folder.name) for folder in classes for path in _images_of_class(folder)
    ]
    if not found:
        raise DataError(f"{root}: no image in it (looked for {', '.join(sorted(IMAGE_SUFFIXES))}).")
    paths = [path for path, _ in found]
    names = tuple(path.relative_to(root).as_posix() for path in paths)
    return Listing(
        origin=str(root),
        names=names,
        read=lambda index: paths[index].read_bytes(),
        content_digest=_digest(_folder_contents(names, paths)),
        folders=tuple(str(folder) for _, folder in found) if classes else None,
    )


def _images_of_class(folder: Path) -> list[Path]:
    entries = sorted(entry for entry in folder.iterdir() if not _hidden(entry.name))
    images = [entry for entry in entries if entry.is_file() and _is_image(entry.name)]
    if not images:
        inner = next((entry for entry in entries if entry.is_dir()), None)
        hint = f"Its class folders may be one level down: name {folder}" if inner else "Remove it"
        raise DataError(f"{folder}: a class folder without an image. {hint}.")
    return images


def _folder_contents(names: Sequence[str], paths: Sequence[Path]) -> Iterable[bytes]:
    for name, path in zip(names, paths, strict=True):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        yield f"{name}\0{path.stat().st_size}\0".encode(errors="surrogateescape") + content


def _tar(path: Path) -> Listing:
    members = members_of(path)
    for member in members:
        _refuse_unsafe(path, member)
    images = [member for member in members if member.isreg() and _is_image_member(member.name)]
    if not images:
        raise DataError(f"{path}: no image in it (looked for {', '.join(sorted(IMAGE_SUFFIXES))}).")
    images.sort(key=lambda member: member.name)
    places = [(member.offset_data, member.size) for member in images]
    with path.open("rb") as file:
        content_digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Listing(
        origin=str(path),
        names=tuple(member.name for member in images),
        read=lambda index: _bytes_at(path, *places[index]),
        content_digest=content_digest,
        folders=_class_folders(path, members, images),
    )


def _refuse_unsafe(path: Path, member: tarfile.TarInfo) -> None:
    """Raises for members that only an attacker needs: links, devices, paths outside."""
    name = member.name
    reason = None
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive:
        reason = "has an absolute path"
    elif ".." in PurePosixPath(name.replace("\\", "/")).parts:
        reason = "points outside the archive"
    elif member.issym() or member.islnk():
        reason = f"is a link to {member.linkname!r}"
    elif not (member.isreg() or member.isdir()) or member.issparse():
        reason = "is neither a plain file nor a folder"
    if reason is not None:
        raise DataError(f"{path}: member {name!r} {reason}; the archive is refused. Pack it anew.")


def _class_folders(
    path: Path, members: Sequence[tarfile.TarInfo], images: Sequence[tarfile.TarInfo]
) -> tuple[str, ...] | None:
    """Returns each image's class folder, or None for a tar of loose images."""
    parents = [PurePosixPath(member.name).parent for member in images]
    if set(parents) == {PurePosixPath()}:
        return None
    if PurePosixPath() in parents:
        raise DataError(
            f"{path}: holds loose images beside class folders. Pack either loose images or one "
            "folder per class."
        )
    roots = sorted({parent.parent for parent in parents})
    if len(roots) > 1:
        raise DataError(
            f"{path}: class folders stand under both {str(roots[0])!r} and {str(roots[1])!r}. Pack "
            "a single folder of class folders."
        )
    for member in members:
        folder = PurePosixPath(member.name)
        is_class = member.isdir() and folder.parent == roots[0] and not _hidden(folder.name)
        if is_class and folder not in parents and folder != roots[0]:
            raise DataError(f"{path}: class folder {member.name!r} has no image. Remove it.")
    return tuple(parent.name for parent in parents)


def _bytes_at(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _npz(path: Path, part: str) -> Listing:
    images = images_from_npz(path, part)
    pixels, labels = images.pixels, images.labels
    origin = f"{path}#{part}" if part else str(path)
    contents = [repr(pixels.shape).encode(), pixels.tobytes()]
    if images.recipe is not None:  # how many images say what values are worth depends on it
        contents.append(images.recipe.encode())
    return Listing(
        origin=origin,
        names=tuple(f"{origin}[{index}]" for index in range(len(pixels))),
        read=lambda index: pixels[index],
        content_digest=_digest(contents + ([] if labels is None else [labels.tobytes()])),
        labels=labels,
        recipe=images.recipe,
    )


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))  # so that no two lists of parts look alike
        digest.update(part)
    return digest.hexdigest()


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _is_image_member(name: str) -> bool:
    return _is_image(name) and not any(map(_hidden, PurePosixPath(name).parts))


def _siblings(path: Path) -> list[str]:
    return [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
