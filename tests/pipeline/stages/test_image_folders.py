from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from road_networks import own

from fdda_deploy.cli import main
from fdda_deploy.durable import TEMP_SUFFIX
from fdda_deploy.errors import DataError
from fdda_deploy.pipeline.data import open_images, read_classes
from fdda_deploy.pipeline.preprocessing import (
    Preprocessing,
    normalized_from_uint8,
    pixel_bounds,
)
from fdda_deploy.pipeline.stages.image_folders import write_image_folders

PLAIN = Preprocessing(8, 8, 3, 8, (0.0,) * 3, (1.0,) * 3)


def stored(path: Path, labels: list[int], num_classes: int = 12, channels: int = 3) -> Path:
    shape = (len(labels), 8, 8, channels)
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(path, x=x, y=np.array(labels), num_classes=np.int64(num_classes))
    return path


def test_folders_read_back_as_the_same_images_and_labels(tmp_path: Path) -> None:
    labels = [10, 2, 2, 0, 11]
    npz = stored(tmp_path / "images.npz", labels)
    assert write_image_folders(npz, tmp_path / "classes") == 5
    classes = read_classes(tmp_path / "classes.txt")
    assert len(classes) == 12
    found = open_images(str(tmp_path / "classes"), PLAIN, classes=classes, num_classes=12)
    direct = open_images(str(npz), PLAIN, num_classes=12)
    assert found.labels is not None
    assert sorted(found.labels.tolist()) == sorted(labels)
    pairs = [
        sorted((y, x.sum().item()) for x, y in zip(*s.load(range(5)), strict=True))
        for s in (found, direct)
    ]
    assert [y for y, _ in pairs[0]] == [y for y, _ in pairs[1]]
    np.testing.assert_allclose([x for _, x in pairs[0]], [x for _, x in pairs[1]], rtol=1e-6)


def test_pixel_bounds_are_black_and_white_as_the_network_sees_them() -> None:
    preprocessing = Preprocessing(8, 8, 3, 8, (0.1, 0.5, 0.9), (0.2, 0.3, 0.4))
    ends = np.zeros((2, 8, 8, 3), np.uint8)
    ends[1] = 255
    black, white = normalized_from_uint8(ends, preprocessing)[:, :, 0, 0]
    low, high = pixel_bounds(preprocessing)
    np.testing.assert_allclose(low, black, rtol=1e-6)
    np.testing.assert_allclose(high, white, rtol=1e-6)


def test_folders_of_the_set_before_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "classes"
    write_image_folders(stored(tmp_path / "a.npz", [1] * 3, channels=1), folder)
    write_image_folders(stored(tmp_path / "b.npz", [4]), folder)
    assert [p.relative_to(folder).as_posix() for p in folder.rglob("*.png")] == ["04/000000.png"]
    assert {p.name for p in tmp_path.iterdir()} == {"a.npz", "b.npz", "classes", "classes.txt"}


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    torn = tmp_path / f".classes{TEMP_SUFFIX}" / "99"
    torn.mkdir(parents=True)
    (torn / "000000.png").write_bytes(b"half")
    write_image_folders(stored(tmp_path / "a.npz", [4]), tmp_path / "classes")
    assert {p.name for p in tmp_path.iterdir()} == {"a.npz", "classes", "classes.txt"}
    assert [p.name for p in (tmp_path / "classes").iterdir()] == ["04"]


def test_another_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros(3))
    with pytest.raises(DataError, match=r"x\.npz: not the synthetic images of a build"):
        write_image_folders(path, tmp_path / "classes")
    assert not (tmp_path / "classes").exists()


def test_synthesize_alone_gives_a_data_set_that_calibrates(
    networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = own(networks, tmp_path / "out")
    words = [config.model.name, "--weights", str(config.model.weights), "--device", "cpu"]
    words += ["--threads", "1", "--quiet"]
    made = ["--num-images", "12", "--num-steps", "3", "--recipe", "zeroq", "--json"]
    assert main(["synthesize", *words, *made, "--out", str(tmp_path / "out")]) == 0
    said = json.loads(capsys.readouterr().out)
    folder = tmp_path / "out" / "synthetic"
    assert (said["recipe"], said["num_images"], said["teacher_top1"]) == ("zeroq", 12, None)
    assert len(said["bns_distance"]) == len(said["noise_distance"]) == len(said["layer_names"])
    assert len(list((folder / "classes").rglob("*.png"))) == 12
    again = ["--calib-data", str(folder / "images.npz"), "--recipe", "none"]
    assert main(["synthesize", *words, *again, "--out", str(tmp_path / "next")]) == 0
    assert not (tmp_path / "next" / "synthetic").exists()
