"""Bad images on the real road: named, skipped up to a limit, then refused in one line."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from refused import CLASSES, Shell

from fdda_deploy.cli import main


@pytest.mark.parametrize("recipe", ["auto", "gdfq", "fdda"])
def test_a_network_without_batch_norm_needs_real_images(shell: Shell, recipe: str) -> None:
    line = shell.refused(f"--recipe {recipe}", network="plain").line
    assert "has no BatchNorm layer: images cannot be synthesized from it" in line
    assert "--calib-data" in line
    assert "--recipe none" in line


def test_with_real_images_a_network_without_batch_norm_is_built(shell: Shell) -> None:
    data = str(shell.folder / "calib.npz")
    assert main([*shell.words(f"--calib-data {data} --scheme w8a8", "plain", None)]) == 0
    assert json.loads((shell.out / "report.json").read_text())["recipe"] == "none"


def test_a_recipe_without_any_image_is_refused(shell: Shell) -> None:
    line = shell.refused("--recipe none").line
    assert line == "--recipe none makes no image: give real ones by --calib-data."


def photos(shell: Shell, tmp_path: Path) -> Path:
    """A copy of the photos that a test may spoil."""
    return Path(shutil.copytree(shell.folder / "photos", tmp_path / "photos"))


def test_a_class_folder_that_is_not_in_the_list_is_named(shell: Shell, tmp_path: Path) -> None:
    mine = photos(shell, tmp_path)
    (mine / "bee").rename(mine / "bees")
    classes = shell.folder / "classes.txt"
    line = shell.refused(f"--calib-data {mine} --classes {classes}").line
    assert "class folder 'bees' is not among the 4 in the class list" in line
    assert "bee" in line.split("class list", 1)[1]


def test_an_empty_class_folder_is_named(shell: Shell, tmp_path: Path) -> None:
    mine = photos(shell, tmp_path)
    (mine / "eel").mkdir()
    assert "eel" in shell.refused(f"--eval-data {mine}").line


def test_a_folder_that_is_not_there_is_named(shell: Shell, tmp_path: Path) -> None:
    assert f"{tmp_path}/none" in shell.refused(f"--calib-data {tmp_path}/none").line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--num-classes 7", "returns 4 classes, but --num-classes is 7"),
        ("--calib-data {photos} --classes {three}", "3 classes, the network has 4"),
        ("--calib-data {three_folders}", "has 3 class folders"),
    ],
    ids=["option", "list", "folders"],
)
def test_a_wrong_class_count_names_both(
    shell: Shell, tmp_path: Path, words: str, message: str
) -> None:
    (tmp_path / "three.txt").write_text("\n".join(CLASSES[:3]))
    mine = photos(shell, tmp_path)
    shutil.rmtree(mine / "dog")
    places = {"photos": shell.folder / "photos", "three": tmp_path / "three.txt"}
    assert message in shell.refused(words.format(**places, three_folders=mine)).line


def spoil(mine: Path, count: int) -> None:
    """Cuts some images short and replaces others by noise."""
    for index, path in enumerate(sorted(mine.rglob("*.png"))[:count]):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if index % 2 else b"no image" * 20)


def test_damaged_images_below_the_limit_are_skipped_and_named(
    shell: Shell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = photos(shell, tmp_path)
    spoil(mine, 2)
    words = f"--calib-data {mine} --eval-data {mine} --max-damaged 2"
    assert main(shell.words(words, "tiny", None)) == 0
    assert "warnings" in capsys.readouterr().out
    report = json.loads((shell.out / "report.json").read_text())
    assert report["data"]["calibration"]["n"] == report["accuracy"]["float"]["n"] == 10
    assert report["data"]["evaluation"]["skipped"] == 2
    names = [path.name for path in sorted(mine.rglob("*.png"))[:2]]
    damaged = [warning for warning in report["warnings"] if "damaged" in warning]
    for what, warning in zip(("calibration", "evaluation"), damaged, strict=True):
        assert warning.startswith(f"2 damaged {what} images were skipped: ")
        assert all(name in warning for name in names)
    assert names[0] in (shell.out / "report.html").read_text()


def test_damaged_images_above_the_limit_are_an_error(shell: Shell, tmp_path: Path) -> None:
    mine = photos(shell, tmp_path)
    spoil(mine, 3)
    line = shell.refused(f"--calib-data {mine} --max-damaged 2").line
    assert f"{mine}: 3 damaged images: " in line
    assert "at most 2 are skipped. Replace them, or raise --max-damaged." in line


def test_an_archive_member_that_points_outside_is_never_written(
    shell: Shell, tmp_path: Path
) -> None:
    archive = tmp_path / "photos.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted((shell.folder / "photos").rglob("*.png")):
            tar.add(path, f"{path.parent.name}/{path.name}")
        tar.add(shell.folder / "photos/ant/0.png", "../../escaped.png")
    line = shell.refused(f"--calib-data {archive}").line
    assert "../../escaped.png" in line
    assert not list(tmp_path.parent.parent.glob("**/escaped.png"))
