"""The statistics stage after a kill: only the classes that are missing are measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from road_networks import own
from torch import Tensor

from fdda_deploy.pipeline.run import build
from fdda_deploy.pipeline.synthesis import center_writer
from fdda_deploy.pipeline.synthesis.center_file import load_class_centers
from fdda_deploy.pipeline.synthesis.center_writer import CenterWriter


def centers_of(out: Path) -> Path:
    (found,) = out.glob(".stages/statistics/*/centers.safetensors")
    return found


def test_a_killed_measurement_goes_on_and_covers_every_class(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(center_writer, "NOTED_EVERY_SECONDS", 0.0)
    add, seen = CenterWriter.add, []

    def killed_at_the_second(writer: CenterWriter, images: Tensor, labels: Tensor) -> None:
        seen.append(len(labels))
        if len(seen) == 2:
            raise KeyboardInterrupt
        add(writer, images, labels)

    data = {"calib_data": str(networks / "calib.npz"), "recipe": "fdda", "batch_size": 16}
    config = own(networks, tmp_path / "out", **data)
    monkeypatch.setattr(CenterWriter, "add", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        build(config, until="statistics")
    assert not list((tmp_path / "out").glob(".stages/statistics/*/centers.safetensors"))
    record = build(config, until="statistics").record
    assert 0 < sum(seen[2:]) < 40, "classes that were whole are not measured again"
    build(own(networks, tmp_path / "whole", **data), until="statistics")
    found, wanted = (load_class_centers(centers_of(tmp_path / name)) for name in ("out", "whole"))
    assert found.counts.tolist() == wanted.counts.tolist()
    assert record["covered"] == int((wanted.counts > 0).sum())
    for got, want in zip(found.means, wanted.means, strict=True):
        assert got.allclose(want, rtol=1e-4, atol=1e-5)
