"""What a model is made of, as digests, without importing torch: the load stage's cache key."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from importlib import metadata
from pathlib import Path

from fdda_deploy.config import ModelConfig
from fdda_deploy.pipeline.durable import sha256_of
from fdda_deploy.pipeline.workspace import Json

_LIBRARIES = ("torch", "torchvision", "onnx", "onnxscript", "timm")


def model_identity(model: ModelConfig) -> dict[str, Json]:
    """Returns digests of the definition and weights that ``model`` names, and library versions.

    A definition may import what lies beside it, so the Python files of its folder all count.
    A file that is missing has the digest None: the load stage then says so.
    """
    return {
        "definition": _definition_digest(_definition_file(model.name)),
        "weights": _file_digest(Path(model.weights)) if model.weights else None,
        "libraries": {name: version_of(name) for name in _LIBRARIES},
    }


def version_of(distribution: str) -> str | None:
    """Returns the installed version of a distribution, None where it is absent."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _definition_file(name: str) -> Path | None:
    """Returns the Python file behind ``path/file.py:callable`` or ``package.module:callable``."""
    source, colon, _ = name.rpartition(":")
    if not colon or source == "timm":
        return None
    if source.endswith(".py"):
        return Path(source)
    try:
        spec = importlib.util.find_spec(source)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def _definition_digest(path: Path | None) -> str | None:
    if path is None or not path.is_file():
        return None
    beside = sorted(other for other in path.parent.glob("*.py") if os.access(other, os.R_OK))
    lines = [f"{file.name} {_file_digest(file)}" for file in {path: None} | dict.fromkeys(beside)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _file_digest(path: Path | None) -> str | None:
    return sha256_of(path) if path is not None and path.is_file() else None
