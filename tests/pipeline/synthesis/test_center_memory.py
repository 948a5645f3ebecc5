"""21,000 classes: memory for a batch and a row, not for all centers."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fdda_deploy.pipeline.allocator import return_freed_memory
from fdda_deploy.pipeline.network import StatisticsNetwork, statistics_network, trace
from fdda_deploy.pipeline.synthesis.center_file import CHECKED_BYTES, load_class_centers
from fdda_deploy.pipeline.synthesis.center_writer import CenterWriter
from fdda_deploy.pipeline.synthesis.centers import class_centers

CPU = torch.device("cpu")
CLASSES, BATCH = 21_000, 500
WIDTHS = (64, 128)
MIB = 1 << 20
BOUND = 6 * MIB
"""What making and using the centers may add to the process's own memory; the file has 34 MB."""
STATUS = Path("/proc/self/status")

pytestmark = pytest.mark.skipif(
    not STATUS.exists(), reason="Linux alone says what part of memory is the process's own"
)


def own_bytes() -> int:
    """Resident memory in use, less pages of files, which the system takes back when it wants."""
    return_freed_memory()  # a test before this one may have made the process keep it
    found = re.search(r"^RssAnon:\s+(\d+) kB$", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


def wide_network() -> StatisticsNetwork:
    first, second = WIDTHS
    module = nn.Sequential(
        *(nn.Conv2d(3, first, 1), nn.BatchNorm2d(first)),
        *(nn.Conv2d(first, second, 1, groups=first), nn.BatchNorm2d(second)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(second, 4)),
    )
    return statistics_network(trace(module.eval(), (3, 1, 2)))


def batch(first: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(first)
    images = torch.randn(BATCH, 3, 1, 2, generator=random)
    return images, torch.arange(first, first + BATCH)


def test_memory_does_not_grow_with_the_classes(tmp_path: Path) -> None:
    network, path = wide_network(), tmp_path / "centers"
    network(batch(0)[0])  # what the first forward allocates once is not counted
    before, peak = own_bytes(), 0
    with CenterWriter(network, CLASSES, path, device=CPU) as writer:
        for first in range(0, CLASSES, BATCH):
            writer.add(*batch(first))
            peak = max(peak, own_bytes())
        writer.finish()
    tracemalloc.start()
    try:
        centers = load_class_centers(path)
        _, read = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    for class_index in range(0, CLASSES, 50):
        centers.of(class_index)
        peak = max(peak, own_bytes())
    assert path.stat().st_size > 5 * BOUND
    assert peak - before < BOUND
    assert read < 4 * CHECKED_BYTES
    start = 20_000
    wanted = class_centers(network, [batch(start)], CLASSES, device=CPU)
    for class_index in range(start, start + BATCH):
        for got, want in zip(centers.of(class_index), wanted.of(class_index), strict=True):
            assert torch.equal(got, want)
    assert int((centers.counts == 1).sum()) == CLASSES
