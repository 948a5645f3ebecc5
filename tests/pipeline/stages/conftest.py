"""Networks and images that the builds of this folder share; benches that take no time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from road_networks import write_images, write_networks

from fdda_deploy.engines.doctor import choose_backend
from fdda_deploy.errors import MissingBackendError
from fdda_deploy.pipeline import workspace
from fdda_deploy.pipeline.stages import running


@pytest.fixture(scope="module", autouse=True)
def short_builds() -> Iterator[None]:
    """Short benches, one code digest for this process and its children, threads put back."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "BENCH_SECONDS", 0.02)
        patch.setattr(workspace, "code_digest", lambda: "fixed")  # sources may be edited meanwhile
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the networks of `road_networks` and calib.npz: 40 labelled images."""
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    write_images(folder / "calib.npz", 40)
    return folder


@pytest.fixture(scope="session")
def rtx() -> str:
    """The backend that builds plans without a GPU."""
    try:
        choose_backend("rtx")
    except MissingBackendError as error:
        pytest.skip(str(error))
    return "rtx"
