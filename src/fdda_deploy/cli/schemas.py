"""`fdda-deploy schema`: the JSON Schema of what other commands write, for tools that read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import fdda_deploy
from fdda_deploy.cli.options import UsageFaultError, completing
from fdda_deploy.cli.results import print_json, print_table
from fdda_deploy.cli.stages import examples
from fdda_deploy.cli.surroundings import AsJson
from fdda_deploy.config.values import near, plain_name

app = typer.Typer()

_PACKAGE = Path(fdda_deploy.__file__).parent
FILES = {
    "report": ("report.json", _PACKAGE / "schemas" / "report.schema.json"),
    "manifest": ("manifest.json of a build", _PACKAGE / "schemas" / "manifest.schema.json"),
    "package": (
        "manifest.json of a package",
        _PACKAGE / "engines" / "templates" / "manifest.schema.json",
    ),
    "calibration": ("calibration.json", _PACKAGE / "schemas" / "calibration.schema.json"),
    "sensitivity": ("sensitivity.json", _PACKAGE / "schemas" / "sensitivity.schema.json"),
    "plan_bytes": ("plan_bytes.json", _PACKAGE / "schemas" / "plan_bytes.schema.json"),
}
"""What each schema is of, and where it is installed."""


@app.command(epilog=examples("schema", "schema report > report.schema.json"))
def schema(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help=f"{', '.join(FILES)}; none lists them.",
            show_default=False,
            autocompletion=completing(tuple(FILES)),
        ),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Print the JSON Schema of a document that other commands write."""
    if name is None:
        rows = [(key, document, str(path)) for key, (document, path) in FILES.items()]
        columns = ("name", "document", "path")
        if as_json:
            print_json([dict(zip(columns, row, strict=True)) for row in rows])
        else:
            print_table(rows)
        return
    if name not in FILES:
        known = ", ".join(FILES)
        raise UsageFaultError(
            f"schema {plain_name(name)}: unknown.{near(name, FILES)} Known: {known}."
        )
    print_json(json.loads(FILES[name][1].read_text(encoding="utf-8")))
