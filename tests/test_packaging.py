"""The built artefacts hold what the checkout holds: links alone once lost four folders."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("pipeline", "exporters", "engines", "calib_cache")

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
        timeout=120,
    )
    (built,) = out.iterdir()
    return built


def test_wheel_from_the_sdist_holds_every_file_of_the_package(tmp_path: Path) -> None:
    sdist = _build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    wheel = _build("wheel", source, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert _expected() - names == set()
    assert any(name.endswith("entry_points.txt") for name in names)


def test_wheel_ships_no_test_and_no_second_copy_of_a_folder(tmp_path: Path) -> None:
    wheel = _build("wheel", ROOT, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"fdda_deploy"}
