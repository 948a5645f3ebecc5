"""What several tests of engines start from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fdda_deploy.engines.sealed_folder import entry_of


@pytest.fixture
def rewritten(finished_build: Path, tmp_path: Path) -> Any:
    """Returns a copy of the build whose report another hand changed, with fitting digests."""

    def rewrite(**changes: Any) -> Path:
        out = tmp_path / "rewritten"
        shutil.copytree(finished_build, out, ignore=shutil.ignore_patterns(".*"))
        report = json.loads((out / "report.json").read_text())
        for path, value in changes.items():
            part, *rest = path.split("__")
            (report[part] if rest else report)[rest[0] if rest else part] = value
        (out / "report.json").write_text(json.dumps(report))
        manifest = json.loads((out / "manifest.json").read_text())
        manifest["files"]["report.json"] = entry_of(out / "report.json")
        (out / "manifest.json").write_text(json.dumps(manifest))
        return out

    return rewrite
