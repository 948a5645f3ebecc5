"""What tests of several folders share; being here also puts this folder on the import path."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from refused import CLASSES, Shell
from spread import pytest_cmdline_main, pytest_collection_modifyitems

__all__ = ["pytest_cmdline_main", "pytest_collection_modifyitems"]  # hooks: pytest finds them here

# A shared machine may stall any example; and a test run answers for the code, not for the day's
# luck: it tries the same examples each time. HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


@pytest.fixture(autouse=True)
def _same_numbers_each_time() -> None:
    """Seeds what torch and numpy draw without a generator, where torch is loaded at all."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def input_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nets.py with its weights, photos/ with a folder per class, classes.txt, calib.npz."""
    import numpy as np
    from PIL import Image
    from road_networks import write_images, write_networks

    folder = tmp_path_factory.mktemp("input")
    write_networks(folder)
    write_images(folder / "calib.npz", 12)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        place = folder / "photos" / CLASSES[index % 4]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{index}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return folder


@pytest.fixture
def shell(
    input_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Shell]:
    """Runs commands on those networks and images, with short benches."""
    import torch

    from fdda_deploy.pipeline.stages import running

    monkeypatch.setattr(running, "BENCH_SECONDS", 0.02)
    threads = torch.get_num_threads()
    yield Shell(input_folder, tmp_path / "out", capsys)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def finished_build(input_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result folder of a whole build of the tiny network, for reading alone."""
    from road_networks import own

    from fdda_deploy.pipeline.run import build
    from fdda_deploy.pipeline.stages import running

    out = tmp_path_factory.mktemp("built") / "result"
    images = {"calib_data": str(input_folder / "photos"), "eval_data": str(input_folder / "photos")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "BENCH_SECONDS", 0.02, raising=False)
        build(own(input_folder, out, **images))
    return out
