"""constraints.txt pins what pyproject.toml asks for, exactly and from nowhere in particular."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = [line for line in LINES if not line.startswith("#")]
VERSIONS = {canonicalize_name(name): version for name, version in (p.split("==") for p in PINS)}
IN_CI = ("test", "docs")
NOT_IN_CI = {
    "tensorrt": "wants a GPU",
    "timm": "its tests are skipped where it is not installed",
}
LINUX = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.11"}


def _required() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *(line for extra in IN_CI for line in extras[extra])]
    requirements = [Requirement(line) for line in asked]
    return [r for r in requirements if r.marker is None or r.marker.evaluate(LINUX)]


@pytest.mark.parametrize("requirement", _required(), ids=lambda r: r.name)
def test_a_dependency_is_pinned_to_a_version_that_it_allows(requirement: Requirement) -> None:
    version = VERSIONS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version, prereleases=True)


def test_every_extra_is_pinned_or_has_a_reason_not_to_be() -> None:
    assert set(PROJECT["optional-dependencies"]) == {*IN_CI, *NOT_IN_CI}


def test_every_pin_is_one_name_and_one_version() -> None:
    assert len(PINS) == len(VERSIONS) > len(_required())
    for pin in PINS:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin), pin


def test_the_first_lines_say_what_was_tested_and_how_it_is_used() -> None:
    about = "\n".join(LINES[:2])
    assert re.search(r"Python 3\.\d+\.\d+, \w+ \w+, extras test and docs", about)
    assert "pip install -c constraints.txt ." in about
    assert "://" not in "\n".join(LINES)
