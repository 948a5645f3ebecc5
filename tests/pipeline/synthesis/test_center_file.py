"""Class centers in a file: equal to those in memory, whole after a kill, never trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.network import StatisticsNetwork
from fdda_deploy.pipeline.synthesis import center_writer
from fdda_deploy.pipeline.synthesis.center_file import load_class_centers
from fdda_deploy.pipeline.synthesis.center_layout import CenterLayout
from fdda_deploy.pipeline.synthesis.center_writer import CenterWriter
from fdda_deploy.pipeline.synthesis.centers import ClassCenters, class_centers

CPU = torch.device("cpu")
CLASSES = 5
Batch = tuple[Tensor, Tensor]


def by_class(count: int = 12) -> list[Batch]:
    """Batches of 5 in the order of classes; class 3 has no image."""
    random = torch.Generator().manual_seed(4)
    images = torch.randn(count, 3, 8, 8, generator=random)
    labels = torch.tensor([0, 1, 2, 4]).repeat_interleave(count // 4)
    return list(zip(torch.split(images, 5), torch.split(labels, 5), strict=True))


def written(network: StatisticsNetwork, path: Path, batches: list[Batch]) -> None:
    with CenterWriter(network, CLASSES, path, device=CPU) as writer:
        for batch in batches:
            writer.add(*batch)
        writer.finish()


@pytest.fixture
def file(tiny: StatisticsNetwork, tmp_path: Path) -> Path:
    path = tmp_path / "new" / "centers.safetensors"
    written(tiny, path, by_class())
    return path


def same(found: ClassCenters, wanted: ClassCenters) -> None:
    assert found.layer_indices == wanted.layer_indices
    for got, want in zip(
        (*found.means, *found.variances, found.counts, found.correct),
        (*wanted.means, *wanted.variances, wanted.counts, wanted.correct),
        strict=True,
    ):
        assert torch.equal(got, want)


def test_centers_from_the_file_are_those_in_memory_to_the_bit(
    tiny: StatisticsNetwork, file: Path
) -> None:
    found = load_class_centers(file)
    wanted = class_centers(tiny, by_class(), CLASSES, device=CPU)
    same(found, wanted)
    for class_index in (0, 3, 4):
        for got, want in zip(found.of(class_index), wanted.of(class_index), strict=True):
            assert torch.equal(got, want)
    assert found.counts.tolist() == [3, 3, 3, 0, 3]
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_any_reader_of_safetensors_takes_the_file(file: Path) -> None:
    tensors = load_file(file)
    assert tensors["means"].shape == (CLASSES, int(tensors["channels"].sum()))
    assert tensors["correct"].dtype == torch.bool


@pytest.mark.parametrize("passed", [1, 2], ids=["one batch", "two batches"])
def test_a_killed_run_goes_on_with_the_classes_that_are_missing(
    passed: int,
    tiny: StatisticsNetwork,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(center_writer, "NOTED_EVERY_SECONDS", 0.0)
    path, batches = tmp_path / "killed.safetensors", by_class()
    with CenterWriter(tiny, CLASSES, path, device=CPU) as writer:
        for batch in batches[:passed]:
            writer.add(*batch)  # and no finish
    assert not path.exists(), "half a set has no name"
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    with CenterWriter(tiny, CLASSES, path, device=CPU) as writer:
        assert writer.done.tolist() == [True, passed == 2, passed == 2, False, False]
        left = ~writer.done[labels]
        writer.add(images[left], labels[left])
        writer.finish()
    found, wanted = load_class_centers(path), load_class_centers(file)
    assert found.counts.tolist() == wanted.counts.tolist()
    for got, want in zip(found.means, wanted.means, strict=True):
        torch.testing.assert_close(got, want)  # other batches, so other last bits


def test_an_unfinished_file_of_another_shape_is_started_over(
    tiny: StatisticsNetwork, file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    path.with_name(path.name + center_writer.UNFINISHED).write_bytes(b"\xff" * 4000)
    written(tiny, path, by_class())
    assert path.read_bytes() == file.read_bytes()


def test_nothing_is_written_through_a_link(
    tiny: StatisticsNetwork, file: Path, tmp_path: Path
) -> None:
    path, outside = tmp_path / "linked", tmp_path / "outside"
    outside.write_bytes(file.read_bytes())  # of the right shape, so it would be continued
    path.with_name(path.name + center_writer.UNFINISHED).symlink_to(outside)
    written(tiny, path, by_class(8))
    assert outside.read_bytes() == file.read_bytes()
    assert load_class_centers(path).counts.tolist() == [2, 2, 2, 0, 2]


def test_statistics_that_are_not_finite_stop_the_writer_at_their_class(
    tiny: StatisticsNetwork, tmp_path: Path
) -> None:
    images = torch.full((1, 3, 8, 8), float("inf"))
    with pytest.raises(CalibrationError, match="class 2 has statistics that are not finite"):
        written(tiny, tmp_path / "file", [(images, torch.tensor([2]))])
    assert not (tmp_path / "file").exists()


def test_digest_tells_files_and_centers_apart(
    tiny: StatisticsNetwork, file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    written(tiny, other, by_class(8))
    assert load_class_centers(file).digest() == load_class_centers(file).digest()
    assert load_class_centers(file).digest() != load_class_centers(other).digest()
    in_memory = [class_centers(tiny, by_class(n), CLASSES, device=CPU) for n in (12, 12, 8)]
    first, again, fewer = (centers.digest() for centers in in_memory)
    assert first == again != fewer


def test_centers_go_to_a_device_only_where_they_fit(file: Path) -> None:
    centers, meta = load_class_centers(file), torch.device("meta")
    assert centers.near(CPU) is centers
    room = int(4 * centers.num_bytes)
    assert centers.near(meta, room).means[0].device == meta
    assert centers.near(meta, room - 1) is centers
    assert centers.near(meta, room).counts.device == CPU


SHAPES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "a key missing": lambda t: t.pop("counts"),
    "a key too many": lambda t: t.update(extra=torch.zeros(1)),
    "negative counts": lambda t: t["counts"].sub_(9),
    "counts of another type": lambda t: t.update(counts=t["counts"].int()),
    "correct of another length": lambda t: t.update(correct=torch.ones(2, dtype=torch.bool)),
    "half precision": lambda t: t.update(means=t["means"].half()),
    "another class count": lambda t: t.update(means=t["means"][:2].contiguous()),
    "no layer": lambda t: t.update(layers=t["layers"][:0], channels=t["channels"][:0]),
    "layers that fall": lambda t: t.update(layers=t["layers"].flip(0).contiguous()),
    "channels that wrap around": lambda t: t["channels"].fill_(1 << 62),
    "a layer without channels": lambda t: t["channels"][0].zero_(),
    "another writer": lambda t: t.update(means=t["means"] + 1),
}


@pytest.mark.parametrize("damage", SHAPES)
def test_files_of_another_shape_are_refused(damage: str, file: Path) -> None:
    tensors = load_file(file)
    SHAPES[damage](tensors)
    save_file(tensors, file)
    with pytest.raises(CalibrationError, match=r"not usable as class centers: .*Delete it"):
        load_class_centers(file)


@pytest.mark.parametrize(
    ("key", "value"),
    [("means", np.nan), ("means", np.inf), ("variances", -1.0)],
    ids=["not a number", "infinity", "negative variance"],
)
def test_values_that_no_image_can_give_are_refused(key: str, value: float, file: Path) -> None:
    centers = load_class_centers(file)
    layout = CenterLayout(CLASSES, centers.layer_indices, tuple(m.shape[1] for m in centers.means))
    with file.open("r+b") as stream:
        stream.seek(layout.offsets()[key] + 4 * layout.row_bytes)  # the last class
        stream.write(np.array([value], "<f4").tobytes())
    with pytest.raises(CalibrationError, match=f"{key} has values that no image can give"):
        load_class_centers(file)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, None], ids=["empty", "noise", "missing"])
def test_files_that_are_no_safetensors_are_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "centers.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalibrationError, match="not usable as class centers"):
        load_class_centers(path)


def test_a_file_cut_short_anywhere_is_refused(file: Path, tmp_path: Path) -> None:
    whole, cut = file.read_bytes(), tmp_path / "cut"
    for length in _lengths(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(CalibrationError, match="not usable as class centers"):
            load_class_centers(cut)


def _lengths(size: int) -> Iterator[int]:
    yield from (1, 7, 8, 9, 100)
    yield from range(200, size, 97)
    yield size - 1
