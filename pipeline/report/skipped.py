"""Damaged images that a build left out, in words: for its report and for its last lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fdda_deploy.pipeline.report.phrases import plain

SHOWN = 3
"""Names per set; the others are counted."""

SETS = {"quantize": "calibration", "evaluate": "evaluation"}
"""The stage that decoded a set, and what the set is for."""


def skipped_images(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns one sentence for each set of images of which some were damaged.

    Args:
        records: Record by stage; a stage that has not run has none. ``skipped`` names the images,
            each with the decoder's reason.
    """
    found = []
    for stage, what in SETS.items():
        names = records.get(stage, {}).get("skipped", [])
        if names:
            more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            some = "; ".join(plain(name) for name in names[:SHOWN])
            found.append(f"{len(names)} damaged {what} images were skipped: {some}{more}.")
    return found
