"""Writes src/fdda_deploy/schemas from the code's types: python tests/docs/shipped_schemas.py."""

from __future__ import annotations

import json
from pathlib import Path

from fdda_deploy.cli.schemas import FILES
from fdda_deploy.pipeline.report.documents import schemas

WRITTEN_BY_HAND = "package"
"""Its schema came first: the manifest is checked against the file itself."""


def shipped() -> dict[Path, str]:
    """Returns the text of every schema file that is made from types, by its path."""
    return {
        FILES[name][1]: json.dumps(schema, indent=1) + "\n"
        for name, schema in schemas().items()
        if name != WRITTEN_BY_HAND
    }


if __name__ == "__main__":
    for path, text in shipped().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
