"""What a package says of the images that its ranges come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fdda_deploy.engines.deploy_manifest import read_manifest
from fdda_deploy.engines.package import PackageOptions, write_package
from fdda_deploy.errors import EngineError


@pytest.mark.parametrize(
    ("made", "given", "wanted"),
    [
        ("fdda", None, "fdda"),
        ("none", "genie", "genie"),  # read back from a file
        ("genie", "zeroq", "genie"),
        ("none", None, "none"),
    ],
)
def test_the_manifest_names_the_recipe_of_the_images(
    rewritten: Any, tmp_path: Path, made: str, given: str | None, wanted: str
) -> None:
    data = json.loads((rewritten() / "report.json").read_text())["data"]
    shutil.rmtree(tmp_path / "rewritten")
    data["calibration"] = {**(data["calibration"] or {}), "recipe": given}
    write_package(rewritten(recipe=made, data=data), tmp_path / "out", PackageOptions())
    assert read_manifest(tmp_path / "out")["calibration"]["recipe"] == wanted


@pytest.mark.parametrize("hostile", ["x", {"recipe": ["genie"]}, 3])
def test_a_report_whose_images_make_no_sense_is_refused(
    rewritten: Any, tmp_path: Path, hostile: object
) -> None:
    data = json.loads((rewritten() / "report.json").read_text())["data"]
    shutil.rmtree(tmp_path / "rewritten")
    build = rewritten(data={**data, "calibration": hostile})
    with pytest.raises(EngineError, match=r"data\.calibration|calibration"):
        write_package(build, tmp_path / "out", PackageOptions())
