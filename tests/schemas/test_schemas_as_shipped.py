"""The JSON Schema files: made from the code's types, sound, and printed by a command."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from fuzzing import SEEDS, damaged_json, fuzz

from fdda_deploy.calib_cache.record import SCHEMA, CalibrationRecord
from fdda_deploy.cli import main
from fdda_deploy.cli.schemas import FILES
from fdda_deploy.engines.build_result import read_build
from fdda_deploy.engines.deploy_manifest import NewerManifestError, parse_manifest
from fdda_deploy.engines.json_schema import problem_in
from fdda_deploy.engines.sealed_folder import entry_of
from fdda_deploy.errors import CalibrationError, EngineError
from fdda_deploy.pipeline.report import checking
from fdda_deploy.pipeline.report.checking import Between
from fdda_deploy.pipeline.report.documents import schemas
from fdda_deploy.pipeline.report.json_schema import schema_of

sys.path.append(str(Path(__file__).parents[1] / "docs"))
from shipped_schemas import shipped


def test_the_shipped_files_are_what_the_types_say() -> None:
    for path, text in shipped().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name}: run python tests/docs/shipped_schemas.py"
        )
    assert schemas().keys() == FILES.keys()
    assert json.loads(FILES["package"][1].read_text()) == schemas()["package"]


@pytest.mark.parametrize("name", FILES)
def test_every_schema_is_sound_and_says_its_version(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="comes with the extra 'test'")
    schema = schemas()[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert problem_in({}, schema) is not None  # our own checker knows every keyword in it
    said = schema if "properties" in schema else schema["$defs"][schema["$ref"].split("/")[-1]]
    assert said["properties"]["schema"] == {"const": 1}
    assert "schema" in said["required"]


@pytest.mark.parametrize("name", FILES)
def test_the_command_prints_a_schema(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", name]) == 0
    assert json.loads(capsys.readouterr().out) == schemas()[name]


def test_the_command_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == list(FILES)
    assert main(["schema", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(FILES)
    assert main(["schema", "reprot"]) == 2
    assert "Did you mean 'report'?" in capsys.readouterr().err


class Inner(TypedDict):
    """One part."""

    kind: Literal["a", "b"]
    share: Annotated[float, Between(0, 1)] | None


@dataclasses.dataclass
class Pair:
    """Two numbers."""

    first: int
    second: float | None


class Outer(TypedDict):
    """All of it."""

    schema: Literal[1]
    parts: list[Inner]
    pairs: dict[str, bool]
    best: Inner | None
    note: NotRequired[str | int]
    free: object


OUTER: dict[str, Any] = {
    "schema": 1,
    "parts": [{"kind": "a", "share": 0.5}, {"kind": "b", "share": None}],
    "pairs": {"x": True},
    "best": {"kind": "b", "share": 1},
    "note": "n",
    "free": {"any": [1, None]},
}


def test_a_dataclass_is_a_record_too() -> None:
    schema = schema_of(Pair, "pair")
    assert problem_in(dataclasses.asdict(Pair(1, None)), schema) is None
    assert problem_in({"first": 1}, schema) == "manifest.second: missing"


@fuzz(600, SEEDS)
def test_the_schema_and_the_check_before_writing_agree(seed: int) -> None:
    document = damaged_json(OUTER, seed)
    schema = schema_of(Outer, "outer")
    refused = checking.problem_in(document, Outer, "outer") is not None
    assert (problem_in(document, schema) is not None) == refused


@fuzz(150, SEEDS)
def test_another_checker_of_schemas_agrees_with_ours(seed: int) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="comes with the extra 'test'")
    document = damaged_json(OUTER, seed)
    schema = schema_of(Outer, "outer")
    theirs = jsonschema.Draft202012Validator(schema).is_valid(document)
    ours = problem_in(document, schema) is None
    assert theirs or not ours
    assert ours or not theirs or _is_whole_float(document)


def _is_whole_float(value: object) -> bool:
    """Returns whether 1.0 or true stands somewhere: JSON Schema takes 1.0 for an integer."""
    if isinstance(value, dict | list):
        return any(map(_is_whole_float, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and value.is_integer()


def newer(folder: Path, name: str) -> None:
    """Gives a document of a build another version, and the manifest its new digest."""
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 2}))
    if name != "manifest.json":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][name] = entry_of(path)
        (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["report.json", "manifest.json"])
def test_a_build_of_a_later_version_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    for made in ("report.json", "model.qdq.onnx"):
        (tmp_path / made).write_text("{}")
    entries = {made: entry_of(tmp_path / made) for made in ("report.json", "model.qdq.onnx")}
    document = {"schema": 1, "tool_version": "9", "files": entries}
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    newer(tmp_path, name)
    with pytest.raises(EngineError, match=rf"{name}: schema 2, this fdda-deploy reads 1\. Upgrade"):
        read_build(tmp_path)


def test_a_record_or_package_of_a_later_version_is_refused_in_one_line() -> None:
    record = CalibrationRecord({}, "a", "b", "w8a8", "trt", "mse", "0.1").to_json()
    later = json.dumps({**json.loads(record), "schema": SCHEMA + 1})
    with pytest.raises(CalibrationError, match="schema: the record has 2, this version reads 1"):
        CalibrationRecord.from_json(later)
    package = json.dumps({"kind": "fdda-deploy package", "schema": 2}).encode()
    with pytest.raises(NewerManifestError, match="schema 2, this fdda-deploy reads 1"):
        parse_manifest(package)
