"""From folder names and numbers to class indices, and every way the two can disagree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fdda_deploy.errors import DataError
from fdda_deploy.pipeline.image_sources import Listing, near

MAX_CLASS_LIST_BYTES = 16 << 20


def read_classes(path: Path | str) -> tuple[str, ...]:
    """Returns the class ids of a text file, one a line; line k (from 0) is class index k.

    Raises:
        DataError: The file is missing, not text, empty, or repeats a class or leaves one blank.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_CLASS_LIST_BYTES:
            raise DataError(f"{path}: larger than a class list can be. Wanted one class id a line.")
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except OSError as error:
        raise DataError(f"{path}: the class list cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: the class list is not UTF-8 text (byte {error.start})."
        ) from error
    names = [line.strip() for line in lines]
    if not names:
        raise DataError(f"{path}: the class list is empty. Wanted one class id a line.")
    first_line: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise DataError(f"{path}: line {number} is blank, which would shift every class after.")
        if name in first_line:
            raise DataError(f"{path}: {name!r} stands on lines {first_line[name]} and {number}.")
        first_line[name] = number
    return tuple(names)


def labels_and_names(
    listing: Listing, classes: Sequence[str] | None, num_classes: int | None
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Returns the labels ``(n,)`` of a listing and the class names in label order, where known.

    Args:
        listing: Images by name, with class folders, numbers, or neither.
        classes: Class ids in label order, where folder names are looked up.
        num_classes: Classes of the network.

    Raises:
        DataError: A folder is not in the list, or labels and class counts do not fit together.
    """
    if classes is not None and num_classes is not None and len(classes) != num_classes:
        raise DataError(
            f"the class list has {len(classes)} classes, but the network has {num_classes}. Give "
            "the list the network was trained with."
        )
    names = tuple(classes) if classes is not None else listing.class_names
    if listing.folders is not None:
        names = names or _sorted_folders(listing, num_classes)
        return _folder_labels(listing, listing.folders, names), names
    if listing.labels is not None:
        _check_range(listing, listing.labels, num_classes if names is None else len(names))
        if num_classes is not None:
            _check_range(listing, listing.labels, num_classes)
    return listing.labels, names


def _sorted_folders(listing: Listing, num_classes: int | None) -> tuple[str, ...]:
    found = tuple(sorted(set(listing.folders or ())))
    if num_classes is not None and len(found) != num_classes:
        # With folders missing, counting them off would shift labels without a word.
        raise DataError(
            f"{listing.origin}: has {len(found)} class folders ({found[0]} ... {found[-1]}), but "
            f"the network has {num_classes} classes. Say which is which with --classes FILE."
        )
    return found


def _folder_labels(
    listing: Listing, folders: Sequence[str], names: Sequence[str]
) -> NDArray[np.int64]:
    index_of = {name: index for index, name in enumerate(names)}
    for folder in dict.fromkeys(folders):
        if folder not in index_of:
            raise DataError(
                f"{listing.origin}: class folder {folder!r} is not among the {len(names)} in "
                f"the class list{near(folder, names)}. Rename the folder, or give the right "
                "--classes FILE."
            )
    repeated = {name for name, times in Counter(names).items() if times > 1}.intersection(folders)
    if repeated:
        raise DataError(f"{listing.origin}: {min(repeated)!r} is twice in the class list.")
    return np.array([index_of[folder] for folder in folders], dtype=np.int64)


def _check_range(listing: Listing, labels: NDArray[np.int64], num_classes: int | None) -> None:
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
        limit = "any" if num_classes is None else f"0 to {num_classes - 1}"
        raise DataError(
            f"{listing.origin}: labels run from {lowest} to {highest}, but the network has "
            f"{num_classes} classes (wanted {limit}). Give the data the network was trained for."
        )
