"""docs/supply.md has the versions of file formats that the code writes, and names what is there."""

from __future__ import annotations

import re
from pathlib import Path

from fdda_deploy.calib_cache.record import SCHEMA as CALIBRATION_SCHEMA
from fdda_deploy.engines.deploy_manifest import MANIFEST_SCHEMA as PACKAGE_SCHEMA
from fdda_deploy.engines.plan_bytes import PLAN_BYTES_SCHEMA
from fdda_deploy.pipeline.report.manifest import MANIFEST_SCHEMA as BUILD_SCHEMA
from fdda_deploy.pipeline.report.schema import REPORT_SCHEMA

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "supply.md").read_text(encoding="utf-8")


def test_the_page_has_the_schema_versions_of_the_code() -> None:
    rows = re.findall(r"^\| `([\w.]+)`([\w ]*) \| (\d+) \|", PAGE, re.MULTILINE)
    stated = {name + rest: int(version) for name, rest, version in rows}
    assert stated == {
        "report.json": REPORT_SCHEMA,
        "manifest.json of a build": BUILD_SCHEMA,
        "manifest.json of a package": PACKAGE_SCHEMA,
        "calibration.json": CALIBRATION_SCHEMA,
        "sensitivity.json": 1,
        "plan_bytes.json": PLAN_BYTES_SCHEMA,
    }


def test_every_file_of_ci_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"\.ci/[\w.]+", PAGE))
    assert {".ci/run", ".ci/freeze", ".ci/audit.py"} <= named
    for name in named:
        assert (ROOT / name).is_file(), name


def test_ci_does_what_the_page_says() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for step in ("hatchling build -t sdist", "pip wheel", ".ci/freeze", "python .ci/audit.py"):
        assert step in script
