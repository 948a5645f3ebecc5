"""``fdda-deploy engine FILE.onnx``: a plan of anybody's graph, with no network to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from fdda_deploy.cli.options import Options
from fdda_deploy.cli.plan_rows import plan_rows
from fdda_deploy.cli.results import print_json, print_table
from fdda_deploy.durable import write_whole
from fdda_deploy.errors import WorkspaceError

if TYPE_CHECKING:
    from fdda_deploy.engines.trt_build import BuiltPlan

PLAN, PLAN_BYTES = "engine.plan", "plan_bytes.json"


def engine_file(options: Options) -> None:
    """Builds the plan of the ONNX file named as MODEL, as the options of the panel Engine say.

    Raises:
        ConfigError: Options that contradict each other or that the backend cannot carry out.
        EngineError: The file or the graph is refused, or the backend is missing.
        WorkspaceError: The result folder cannot be written.
    """
    config = options.build_config()
    path = Path(config.model.name)
    from fdda_deploy.engines.build_options import options_from
    from fdda_deploy.engines.doctor import choose_backend, flavour_of
    from fdda_deploy.engines.onnx_gate import load_onnx
    from fdda_deploy.engines.plan_bytes import attribute
    from fdda_deploy.engines.trt_api import load_api
    from fdda_deploy.engines.trt_build import build_plan

    api = load_api(flavour_of(choose_backend(config.engine.backend).backend))
    model = load_onnx(path)
    built = build_plan(model, options_from(config.engine, config.run.batch_size), api)
    spent = None if config.engine.strip else attribute(built.plan, model).to_json()
    folder = Path(config.run.out or Path("out") / path.stem)
    _write(folder, built.plan, spent)
    if options.json_output:
        print_json({"out": str(folder), **_told(built), "plan": spent})
    elif not options.quiet:
        rows = [("built by", f"{built.backend} {built.version} in {built.seconds:.1f} s")]
        rows += [("note", note) for note in built.notes]
        rows += [("results in", str(folder))]
        print_table([*rows, *([] if spent is None else plan_rows(spent))])


def _told(built: BuiltPlan) -> dict[str, object]:
    return {
        "backend": built.backend,
        "version": built.version,
        "seconds": built.seconds,
        "notes": list(built.notes),
        "log": list(built.log),
    }


def _write(folder: Path, plan: bytes, spent: dict[str, object] | None) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / PLAN, plan)
        if spent is not None:
            write_whole(folder / PLAN_BYTES, json.dumps(spent, indent=1).encode())
    except (OSError, ValueError) as error:
        raise WorkspaceError(
            f"{folder}: cannot be written ({error}). Give another --out."
        ) from error
