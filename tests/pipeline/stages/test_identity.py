"""What a network is made of: digests that change with every file behind it and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from fdda_deploy.config import ModelConfig
from fdda_deploy.pipeline.stages.identity import model_identity, version_of


def network_file(folder: Path) -> Path:
    path = folder / "nets.py"
    path.write_text("from blocks import block\ndef net(): return block()\n")
    (folder / "blocks.py").write_text("def block(): ...\n")
    return path


def test_the_same_files_have_the_same_identity(tmp_path: Path) -> None:
    path = network_file(tmp_path)
    model = ModelConfig(f"{path}:net")
    first = model_identity(model)
    path.touch()
    (tmp_path / "notes.txt").write_text("no part of any network")
    assert model_identity(model) == first
    assert isinstance(first["definition"], str)
    assert len(first["definition"]) == 64


@pytest.mark.parametrize("changed", ["nets.py", "blocks.py"])
def test_a_changed_definition_is_another_network(tmp_path: Path, changed: str) -> None:
    model = ModelConfig(f"{network_file(tmp_path)}:net")
    before = model_identity(model)
    with (tmp_path / changed).open("a") as file:
        file.write("# changed\n")
    assert model_identity(model) != before


def test_changed_weights_are_another_network(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    model = ModelConfig("resnet18", weights=str(weights))
    assert model_identity(model)["weights"] is None
    weights.write_bytes(b"a")
    first = model_identity(model)
    weights.write_bytes(b"b")
    assert first != model_identity(model) != model_identity(ModelConfig("resnet18"))


def test_a_module_is_found_by_its_import_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "mynets_of_identity"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "small.py").write_text("def net(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    model = ModelConfig("mynets_of_identity.small:net")
    before = model_identity(model)
    assert before["definition"] is not None
    (package / "small.py").write_text("def net(): return 1\n")
    assert model_identity(model) != before


@pytest.mark.parametrize(
    "name",
    ["digits", "resnet18", "timm:resnet18", "no/such/file.py:net", "no_such_package.x:net", "..:x"],
)
def test_what_has_no_file_of_its_own_has_no_digest(name: str) -> None:
    assert model_identity(ModelConfig(name))["definition"] is None


def test_library_versions_belong_to_the_identity() -> None:
    libraries = model_identity(ModelConfig("digits"))["libraries"]
    assert isinstance(libraries, dict)
    assert libraries["torch"] == version_of("torch") is not None
    assert version_of("no-such-distribution-at-all") is None
