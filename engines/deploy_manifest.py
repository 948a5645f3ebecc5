"""The manifest of a package: reading one that may come from anywhere, and what must hold in it."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from fdda_deploy.engines.json_schema import problem_in
from fdda_deploy.engines.sealed_folder import read_inside
from fdda_deploy.errors import EngineError

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1
KIND = "fdda-deploy package"
TEMPLATES = Path(__file__).parent / "templates"
SCHEMA_FILE = "manifest.schema.json"
NOT_MEASURED = "not measured"
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
"""A million labels of 60 characters; more is no manifest."""

MAX_DIGITS = 100
"""Of an integer: no count or size has more, and one of 310 fits no float."""

Manifest = Mapping[str, Any]
"""Checked against templates/manifest.schema.json, so its fields need no second check."""


class NewerManifestError(EngineError):
    """The manifest is of a schema that a later fdda-deploy wrote."""


def read_manifest(folder: Path) -> Manifest:
    """Returns the manifest of a package.

    Raises:
        EngineError: No package is there, or its manifest is damaged; the message says where.
        NewerManifestError: A later fdda-deploy wrote it.
    """
    if not folder.is_dir():
        raise EngineError(f"{folder}: no such folder. Give one that `fdda-deploy package` wrote.")
    if not (folder / MANIFEST).is_file():
        raise EngineError(
            f"{folder}: no {MANIFEST} in it. Give a folder that `fdda-deploy package` wrote."
        )
    data = read_inside(folder, MANIFEST, limit=MAX_MANIFEST_BYTES)
    return parse_manifest(data, where=str(folder / MANIFEST))


def parse_manifest(data: bytes, *, where: str = MANIFEST) -> Manifest:
    """Returns a manifest from its bytes, checked field by field.

    Args:
        data: UTF-8 JSON.
        where: How errors call it.

    Raises:
        EngineError: Not JSON, not of this kind, or a field is wrong.
        NewerManifestError: A later schema.
    """
    document = strict_json(data, where=where)
    if not isinstance(document, dict) or document.get("kind") != KIND:
        hint = (
            "It is the manifest of a build: run `fdda-deploy package` on that folder first."
            if isinstance(document, dict) and "files" in document
            else "Give a folder that `fdda-deploy package` wrote."
        )
        raise EngineError(f"{where}: not the manifest of a package. {hint}")
    version = document.get("schema")
    if isinstance(version, int) and not isinstance(version, bool) and version > MANIFEST_SCHEMA:
        raise NewerManifestError(
            f"{where}: schema {str(version)[:20]}, this fdda-deploy reads {MANIFEST_SCHEMA}. "
            "Upgrade fdda-deploy, or make the package again."
        )
    problem = problem_in(document, manifest_schema()) or next(_contradictions(document), None)
    if problem:
        raise EngineError(f"{where}: {problem}. Make the package again.")
    return document


def strict_json(data: bytes, *, where: str) -> object:
    """Returns what ``data`` says as JSON: no NaN, no name twice, no bottomless nesting, all text.

    Raises:
        EngineError: It is not such JSON.
    """
    try:
        document: object = json.loads(
            data.decode("utf-8"),
            parse_constant=_refuse,
            parse_int=_integer,
            object_pairs_hook=_each_name_once,
        )
        json.dumps(document, ensure_ascii=False).encode()  # half a character fits no file
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        reason = " ".join(str(error).split())[:200]
        raise EngineError(f"{where}: not readable JSON ({reason}). Make it again.") from None
    return document


@functools.cache
def manifest_schema() -> Mapping[str, Any]:
    """Returns the JSON Schema that every manifest fits; a copy travels with every package."""
    schema: Mapping[str, Any] = json.loads((TEMPLATES / SCHEMA_FILE).read_text(encoding="utf-8"))
    return schema


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name[:60]!r} stands twice")
        found[name] = value
    return found


def _contradictions(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields what no single field can say: references without a file, sizes that differ."""
    batch, pre = document["batch"], document["preprocessing"]
    if not batch["min"] <= batch["opt"] <= batch["max"]:
        yield "manifest.batch: wanted min <= opt <= max"
    for part in ("graph", "plan", "probe"):
        if document[part] is not None and document[part]["file"] not in document["files"]:
            yield f"manifest.{part}.file: {document[part]['file']} is not among manifest.files"
    if document["graph"] is None and document["plan"] is None:
        yield "manifest: neither a graph nor a plan, so there is nothing to run"
    for name in ("mean", "std"):
        if len(pre[name]) != pre["channels"]:
            yield f"manifest.preprocessing.{name}: wanted {pre['channels']} values"
    if min(pre["std"]) <= 0:
        yield "manifest.preprocessing.std: wanted values above 0"
    if pre["resize"] is not None and pre["resize"] < max(pre["height"], pre["width"]):
        yield "manifest.preprocessing.resize: wanted at least both sides of the input"
    wanted = [pre["channels"], pre["height"], pre["width"]]
    if document["inputs"][0]["shape"][1:] != wanted:
        yield f"manifest.inputs[0].shape: wanted {wanted} behind the batch"
