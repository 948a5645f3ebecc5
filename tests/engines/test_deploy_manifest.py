"""A manifest from anywhere: read, or refused in one line that names the field."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from package_samples import DIGEST, sample_manifest, sample_plan, tensorrt_plan

from fdda_deploy.engines.deploy_manifest import (
    NewerManifestError,
    manifest_schema,
    parse_manifest,
    read_manifest,
)
from fdda_deploy.engines.json_schema import problem_in
from fdda_deploy.errors import EngineError, FddaDeployError

ENTRY = {"sha256": DIGEST, "bytes": 1}


def parsed(document: object) -> Any:
    return parse_manifest(json.dumps(document).encode())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"plan": None},
        {"plan": tensorrt_plan()},
        {"graph": None, "triton": None},
        {"accuracy": "not measured", "labels": None},
    ],
    ids=["graph and RTX plan", "graph alone", "TensorRT plan", "plan alone", "not measured"],
)
def test_every_form_of_manifest_is_read_as_it_was_written(changes: dict[str, Any]) -> None:
    document = sample_manifest(**changes)
    assert parsed(document) == document


def _changed(path: str, value: object) -> dict[str, Any]:
    document = sample_manifest()
    *parents, last = path.split(".")
    part: Any = document
    for name in parents:
        part = part[int(name) if name.isdigit() else name]
    part[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("files", {"../secret": ENTRY}, "its name"),
        ("files", {"/etc/passwd": ENTRY}, "its name"),
        ("files", {"a/../../b": ENTRY}, "its name"),
        ("files", {"a\\b": ENTRY}, "its name"),
        ("files", {"C:/x": ENTRY}, "its name"),
        ("files", {"$(reboot)": ENTRY}, "its name"),
        ("files", {"engine.plan": {"sha256": "XYZ", "bytes": 1}}, "sha256"),
        ("files", {"engine.plan": {"sha256": DIGEST, "bytes": -1}}, "0 or more"),
        ("files", {"engine.plan": {"sha256": DIGEST, "bytes": 10**30}}, "or less"),
        ("files", [], "wanted object"),
        ("graph.file", "../model.onnx", "manifest.graph"),
        ("graph.file", "other.onnx", "is not among manifest.files"),
        ("plan.file", "other.plan", "is not among manifest.files"),
        ("probe.file", "README.md", "is not among manifest.files"),
        ("plan.version", "10; rm -rf /", "manifest.plan"),
        ("plan.flavour", "onnx", "manifest.plan"),
        ("batch.max", 4, "wanted min <= opt <= max"),
        ("batch.min", 0, "1 or more"),
        ("batch.opt", 10**9, "or less"),
        ("batch.opt", "8", "wanted integer"),
        ("preprocessing.mean", [0.5], "wanted 3 values"),
        ("preprocessing.std", [0.1, 0.0, 0.1], "above 0"),
        ("preprocessing.resize", 8, "at least both sides"),
        ("preprocessing.height", 10**6, "or less"),
        ("preprocessing.width", 16, "inputs[0].shape"),
        ("preprocessing.interpolation", "lanczos", "'bilinear', 'bicubic'"),
        ("triton.name", "../x", "manifest.triton"),
        ("labels", [1, 2], "manifest.labels"),
        ("inputs", [], "got 0 items"),
        ("unknown", 1, "not a field of this format"),
        ("schema", "1", "wanted 1"),
        ("schema", True, "wanted 1"),
    ],
)
def test_a_wrong_field_is_named(path: str, value: object, says: str) -> None:
    with pytest.raises(EngineError) as caught:
        parsed(_changed(path, value))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("Make the package again.")


@pytest.mark.parametrize("name", sorted(sample_manifest()))
def test_no_field_may_be_missing(name: str) -> None:
    document = sample_manifest()
    del document[name]
    with pytest.raises(EngineError, match=rf"manifest\.{name}: missing|not the manifest"):
        parsed(document)


def test_a_manifest_of_a_later_schema_asks_for_an_upgrade() -> None:
    with pytest.raises(NewerManifestError, match=r"schema 2, this fdda-deploy reads 1\. Upgrade"):
        parsed({"kind": "fdda-deploy package", "schema": 2, "new": "form"})


def test_the_manifest_of_a_build_is_told_from_that_of_a_package() -> None:
    with pytest.raises(EngineError, match="run `fdda-deploy package` on that folder first"):
        parsed({"schema": 1, "tool_version": "0.1.0", "files": {}})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "not a JSON number"),
        (b'{"kind": 1, "kind": 2}', "'kind' stands twice"),
        (b"[" * 200_000, "not readable JSON"),
        (b"1" * 10_000, "not readable JSON"),
        (b"\xff\xfe", "not readable JSON"),
        (b"", "not readable JSON"),
        (b"[]", "not the manifest of a package"),
    ],
    ids=["NaN", "infinity", "twice", "nested", "long number", "bytes", "empty", "list"],
)
def test_what_is_no_plain_json_is_refused_in_one_line(text: bytes, says: str) -> None:
    with pytest.raises(EngineError) as caught:
        parse_manifest(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_manifest_is_told_from_none(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such folder"):
        read_manifest(tmp_path / "none")
    with pytest.raises(EngineError, match=r"no manifest\.json in it"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_a_link_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(json.dumps(sample_manifest()))
    package = tmp_path / "package"
    package.mkdir()
    (package / "manifest.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineError, match="leads out of the folder"):
        read_manifest(package)


def test_the_schema_itself_uses_no_keyword_that_the_check_lacks() -> None:
    assert problem_in(sample_manifest(plan=sample_plan()), manifest_schema()) is None
    parts = [manifest_schema()]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            assert "pattern" not in part or re.match(r"\^.*\$", str(part["pattern"]))
            parts.extend(part.values())
        elif isinstance(part, list):
            parts.extend(part)


@pytest.mark.fuzz
@given(st.binary(max_size=400))
def test_any_bytes_are_refused_and_never_crash(data: bytes) -> None:
    with pytest.raises(FddaDeployError):
        parse_manifest(data)


WILD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@pytest.mark.fuzz
@given(st.data())
def test_a_manifest_with_one_wild_value_is_read_or_refused(data: st.DataObject) -> None:
    document = copy.deepcopy(sample_manifest())
    part: Any = document
    while True:
        keys = sorted(part) if isinstance(part, dict) else list(range(len(part)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(part[key], dict | list) or not part[key] or data.draw(st.booleans()):
            part[key] = data.draw(WILD)
            break
        part = part[key]
    try:
        read = parsed(document)
    except FddaDeployError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert read == document
    assert "\n" not in refusal
