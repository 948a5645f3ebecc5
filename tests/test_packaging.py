"""The built artefacts hold what the checkout holds: links alone once lost four folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("pipeline", "exporters", "engines", "calib_cache")
IN_THE_SDIST = {
    *FOLDERS,
    *("src", "tests", "docs", "benchmarks", ".ci"),
    *("pyproject.toml", "constraints.txt", "mkdocs.yml", ".gitignore"),
    *("README.md", "CHANGELOG.md", "LICENSE", "PKG-INFO"),
}
MOST_BYTES_OF_THE_SDIST = 5_000_000

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="needs the checkout beside the tests"
)


def _expected() -> set[str]:
    """Every source and data file of the package, by its name inside the wheel."""
    found = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(f"fdda_deploy/{path.relative_to(ROOT).as_posix()}")
    for path in (ROOT / "src/fdda_deploy").rglob("*"):
        relative = path.relative_to(ROOT / "src")
        if path.is_file() and not {*FOLDERS, "__pycache__"} & set(relative.parts[:2]):
            found.add(relative.as_posix())
    return {name for name in found if "__pycache__" not in name}


def _build(kind: str, source: Path, out: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=600,
    )
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built from the checkout."""
    return _build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout."""
    return _build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel_from_the_sdist(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the unpacked source distribution."""
    folder = tmp_path_factory.mktemp("from_sdist")
    with tarfile.open(sdist) as archive:
        # an argument since 3.11.4 alone; of an attribute older ones know nothing, and newer ones do
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder / "source")  # noqa: S202  # packed a moment ago, here
    (source,) = (folder / "source").iterdir()
    return _build("wheel", source, folder / "wheel")


def _sums(wheel: Path) -> dict[str, int]:
    """Returns the CRC-32 of each file in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


def test_wheel_from_the_sdist_holds_every_file_of_the_package(wheel_from_the_sdist: Path) -> None:
    names = set(_sums(wheel_from_the_sdist))
    assert _expected() - names == set()
    assert any(name.endswith("entry_points.txt") for name in names)
    assert "fdda_deploy/py.typed" in names


def test_both_ways_to_a_wheel_give_the_same_files(wheel: Path, wheel_from_the_sdist: Path) -> None:
    assert _sums(wheel_from_the_sdist) == _sums(wheel)


def test_wheel_ships_no_test_and_no_second_copy_of_a_folder(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"fdda_deploy"}


def test_sdist_holds_what_tests_and_the_manual_need_and_no_scratch(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert {member.name.split("/")[1] for member in members} == IN_THE_SDIST
    assert all(member.isfile() for member in members), "links and folders unpack differently"
    assert sdist.stat().st_size < MOST_BYTES_OF_THE_SDIST


def test_an_unpacked_wheel_starts_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    shutil.unpack_archive(wheel, unpacked, "zip")
    program = (
        "import fdda_deploy.cli; print(fdda_deploy.__file__); fdda_deploy.cli.main(['--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(unpacked / "fdda_deploy"))
    assert "doctor" in done.stdout
