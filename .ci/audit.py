"""Audits every version in constraints.txt: no known vulnerability, or the run fails.

pip-audit answers "No known vulnerabilities found" also where its service knew none of the packages
or was not reached. Here that reads "not audited", with the reason; it ends no run, for a machine
without that service must be able to test the rest.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SERVICES = ("pypi", "osv")
OPTIONS = ("--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json")
SECONDS = 120
MOST_CHARS = 160
SHOWN = 5
"""Packages spelled out in a list of those that were not audited."""
WANTED = {"id": str, "package": str, "reason": str, "until": datetime.date}

Report = dict[str, Any]


def accepted_ids(text: str, today: datetime.date) -> frozenset[tuple[str, str]]:
    """Returns (package, id) of each accepted vulnerability whose time is not over.

    Raises:
        ValueError: An entry without an id, a package, a reason or a date.
    """
    found = set()
    for entry in tomllib.loads(text).get("accepted", []):
        wrong = [name for name, kind in WANTED.items() if not isinstance(entry.get(name), kind)]
        if wrong or not entry["reason"].strip():
            raise ValueError(f"accepted_vulnerabilities.toml: {entry}: want {', '.join(WANTED)}.")
        if today < entry["until"]:
            found.add((entry["package"].lower(), entry["id"]))
    return frozenset(found)


def verdict(
    report: Report, accepted: frozenset[tuple[str, str]] = frozenset()
) -> tuple[list[str], bool]:
    """Returns the lines to print for a report of pip-audit, and whether it passes."""
    packages = report["dependencies"]
    audited = [package for package in packages if "vulns" in package]
    skipped = [package for package in packages if "vulns" not in package]
    if not audited:
        why = skipped[0]["skip_reason"] if skipped else "the report names no package"
        return [f"not audited: {why}"], True
    open_lines, closed_lines = [], []
    for package in audited:
        for vulnerability, line in _described(package):
            names = {vulnerability["id"], *vulnerability.get("aliases", ())}
            known = any((package["name"].lower(), name) in accepted for name in names)
            (closed_lines if known else open_lines).append(line)
    lines = [f"vulnerable: {line}" for line in open_lines]
    lines += [f"accepted: {line}" for line in closed_lines]
    lines.append(f"audited: {len(audited)} packages, {len(open_lines)} open vulnerabilities")
    if skipped:
        some = ", ".join(package["name"] for package in skipped[:SHOWN])
        more = f", and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
        lines.append(f"not audited: {len(skipped)} packages unknown to the service: {some}{more}")
    return lines, not open_lines


def _described(package: Report) -> Iterator[tuple[Report, str]]:
    for vulnerability in package["vulns"]:
        fixed = ", ".join(vulnerability.get("fix_versions", ())) or "no version"
        name = f"{package['name']} {package['version']}"
        yield vulnerability, f"{name}: {vulnerability['id']}, fixed in {fixed}"


def _ran(command: Sequence[str | Path], path: str = "") -> tuple[str, str]:
    """Returns (stdout, the last line of stderr) of ``python -m command``, whatever it exits with.

    ``path`` is a folder to import from before all others.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", *map(str, command)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "", f"no answer within {SECONDS} s"
    said = done.stderr.strip().splitlines()
    return done.stdout, said[-1][:MOST_CHARS] if said else f"exit code {done.returncode}"


def audited_by_a_service(
    folder: str, accepted: frozenset[tuple[str, str]]
) -> tuple[list[str], bool]:
    """Returns the verdict of the first service that audits a package; else what each said.

    pip-audit is installed in ``folder``, beside the environment and not into it.
    """
    _, said = _ran(["pip", "install", "--quiet", "--no-compile", "--target", folder, "pip-audit"])
    if not (Path(folder) / "pip_audit").is_dir():
        return [f"not audited: pip-audit cannot be installed ({said})"], True
    refused = []
    for service in SERVICES:
        asked = ["pip_audit", "-r", ROOT / "constraints.txt", "-s", service]
        output, said = _ran([*asked, *OPTIONS], folder)
        try:
            lines, passes = verdict(json.loads(output), accepted)
        except json.JSONDecodeError:
            refused.append(f"not audited: {service}: {said}")
            continue
        if not lines[0].startswith("not audited"):
            return lines, passes
        refused.append(lines[0].replace("not audited:", f"not audited: {service}:"))
    return refused, True


def main() -> int:
    """Returns the exit code: 1 where an open vulnerability was found."""
    text = (ROOT / ".ci/accepted_vulnerabilities.toml").read_text(encoding="utf-8")
    accepted = accepted_ids(text, datetime.datetime.now(datetime.UTC).date())
    with tempfile.TemporaryDirectory() as folder:
        lines, passes = audited_by_a_service(folder, accepted)
    print("\n".join(lines))
    return 0 if passes else 1


if __name__ == "__main__":
    sys.exit(main())
