"""The audit fails on an open vulnerability, and never calls a package audited that was not."""

from __future__ import annotations

import datetime
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TODAY = datetime.date(2026, 11, 21)
NOT_FOUND = "Dependency not found on PyPI and could not be audited: numpy (2.4.6)"
SOUND = {"name": "numpy", "version": "2.4.6", "vulns": []}
SKIPPED = {"name": "numpy", "skip_reason": NOT_FOUND}
VULNERABLE = {
    "name": "Pillow",
    "version": "13.0.0",
    "vulns": [
        {
            "id": "CVE-2099-1",
            "fix_versions": ["99.0"],
            "aliases": ["GHSA-aaaa-bbbb-cccc"],
            "description": "x",
        }
    ],
}
"""What pip-audit 2.10 writes with ``-f json``."""
ENTRY = """
[[accepted]]
id = "GHSA-aaaa-bbbb-cccc"
package = "pillow"
reason = "We open no such file."
until = 2027-01-31
"""


def _audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ci_audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


AUDIT = _audit()


def _verdict(*packages: dict[str, Any], accepted: str = "") -> tuple[str, bool]:
    lines, passes = AUDIT.verdict(
        {"dependencies": list(packages)}, AUDIT.accepted_ids(accepted, TODAY)
    )
    return "\n".join(lines), passes


def test_packages_without_a_vulnerability_pass() -> None:
    assert _verdict(SOUND) == ("audited: 1 packages, 0 open vulnerabilities", True)


def test_a_vulnerability_fails_and_says_what_mends_it() -> None:
    said, passes = _verdict(SOUND, VULNERABLE)
    assert not passes
    assert "vulnerable: Pillow 13.0.0: CVE-2099-1, fixed in 99.0" in said
    assert "audited: 2 packages, 1 open" in said


def test_a_report_that_skipped_every_package_is_no_audit() -> None:
    assert _verdict(SKIPPED) == (f"not audited: {NOT_FOUND}", True)
    assert _verdict() == ("not audited: the report names no package", True)


def test_skipped_packages_are_named_beside_audited_ones() -> None:
    said, passes = _verdict(SOUND, *[SKIPPED] * 7)
    assert passes
    assert "not audited: 7 packages unknown to the service: numpy, numpy" in said
    assert said.endswith("and 2 more")


def test_an_accepted_vulnerability_passes_under_any_of_its_names_and_stays_visible() -> None:
    said, passes = _verdict(VULNERABLE, accepted=ENTRY)
    assert passes
    assert "accepted: Pillow 13.0.0: CVE-2099-1" in said


def test_an_acceptance_ends_on_its_day() -> None:
    _, passes = _verdict(VULNERABLE, accepted=ENTRY.replace("2027-01-31", "2026-11-21"))
    assert not passes


@pytest.mark.parametrize("name", ["id", "package", "reason", "until"])
def test_an_acceptance_without_one_of_its_parts_is_refused(name: str) -> None:
    entry = "\n".join(line for line in ENTRY.splitlines() if not line.startswith(name))
    with pytest.raises(ValueError, match=r"accepted_vulnerabilities.toml: .* want id, package"):
        AUDIT.accepted_ids(entry, TODAY)


def test_an_acceptance_with_an_empty_reason_is_refused() -> None:
    with pytest.raises(ValueError, match=r"want id, package, reason"):
        AUDIT.accepted_ids(ENTRY.replace("We open no such file.", " "), TODAY)


def test_the_committed_list_can_be_read() -> None:
    text = (ROOT / ".ci" / "accepted_vulnerabilities.toml").read_text(encoding="utf-8")
    assert AUDIT.accepted_ids(text, TODAY) == frozenset()
