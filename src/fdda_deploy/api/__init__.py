"""The Python API: a few verbs with the names and settings of the commands.

``fdda_deploy.build("digits", bits=4)`` does what ``fdda-deploy build digits --bits 4`` does, and
returns what it found instead of printing it. Every failure is an `FddaDeployError`; its message
names settings as the command line writes them (``--calib-data`` is ``calib_data``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from fdda_deploy.api.arguments import takes_settings
from fdda_deploy.api.checking import FILE_TARGETS, FileQuestion, checked_file
from fdda_deploy.api.results import BuildResult, CheckResult, StageTime
from fdda_deploy.api.settings import (
    CheckSettings,
    PathLike,
    Settings,
    require_known,
    resolved,
)
from fdda_deploy.config.compact_plan import require_compact_repair
from fdda_deploy.config.values import near
from fdda_deploy.errors import ConfigError

__all__ = [
    "BuildResult",
    "CheckResult",
    "CheckSettings",
    "Settings",
    "StageTime",
    "build",
    "check",
    "export",
    "quantize",
    "synthesize",
]

_OF_FILES_ALONE = ("fix", "tolerance", "feed", "profile", "flag")
_OF_FILES = {*_OF_FILES_ALONE, "target", "sm", "out", "seed", "compact_plan"}


@takes_settings
def build(
    model: str | None = None,
    *,
    config: PathLike | None = None,
    progress: bool = False,
    **settings: Unpack[Settings],
) -> BuildResult:
    """Returns the result of the whole road: from a network to a verified engine and a report.

    Example:
        >>> result = build("digits", bits=4, out="out/digits")  # doctest: +SKIP
        >>> result.files["model.qdq.onnx"], result.top1_drop  # doctest: +SKIP
        (PosixPath('out/digits/model.qdq.onnx'), 0.17)
    """
    return _run("build", "report", model, config, progress, settings)


@takes_settings
def synthesize(
    model: str | None = None,
    *,
    config: PathLike | None = None,
    progress: bool = False,
    **settings: Unpack[Settings],
) -> BuildResult:
    """Returns where the images are that were made from the network alone.

    ``files`` has ``synthetic/images.npz`` (``x`` uint8 ``(N, H, W, C)``, ``y`` int64 ``(N,)``) and
    ``synthetic/classes``, a folder of PNG files per class; neither where recipe is ``none``.
    """
    result = _run("synthesize", "synthesize", model, config, progress, settings)
    images, folder = result.files.get("synthetic/images.npz"), result.out / "synthetic/classes"
    if images is None:
        return result
    from fdda_deploy.pipeline.folder_lock import locked
    from fdda_deploy.pipeline.stages.image_folders import write_image_folders

    with locked(result.out):
        write_image_folders(images, folder)
    files = {**result.files, "synthetic/classes": folder}
    return BuildResult(result.out, files, result.stages, result.record, result.report)


@takes_settings
def quantize(
    model: str | None = None,
    *,
    config: PathLike | None = None,
    progress: bool = False,
    **settings: Unpack[Settings],
) -> BuildResult:
    """Returns the calibration: ranges found, weights rounded and fine-tuned.

    ``record`` has the SQNR of each layer (``layers``) and what makes the noise (``diagnosis``);
    ``files`` has ``calibration.json``.
    """
    return _run("quantize", "quantize", model, config, progress, settings)


@takes_settings
def export(
    model: str | None = None,
    *,
    config: PathLike | None = None,
    progress: bool = False,
    **settings: Unpack[Settings],
) -> BuildResult:
    """Returns the float and the Q/DQ ONNX files: ``model.fp32.onnx``, ``model.qdq.onnx``."""
    return _run("export", "export", model, config, progress, settings)


@takes_settings
def check(
    model: str | None = None,
    *,
    config: PathLike | None = None,
    progress: bool = False,
    **settings: Unpack[CheckSettings],
) -> CheckResult:
    """Returns which of TensorRT's rules a network's Q/DQ graph, or any ONNX file, breaks.

    An ONNX file is given as ``model``, ``FILE.onnx``, without ``config``; its settings are
    ``target``, ``sm``, ``profile`` and ``flag``, with ``fix=True`` also ``out``, ``tolerance``,
    ``feed``, ``seed`` and ``compact_plan``. A file that breaks a rule is a result; a network whose
    own graph breaks one is an ExportError.
    """
    require_known("check", settings, CheckSettings.__annotations__)
    if model is not None and model.lower().endswith(".onnx"):
        findings, fix = checked_file(_question(Path(model), config, settings))
        return CheckResult(findings, None if fix is None else Path(settings["out"]), fix)
    for name in _OF_FILES_ALONE:
        if name in settings:
            raise ConfigError(f"check({name}=...): only where model is an ONNX file, FILE.onnx.")
    result = _run("check", "check", model, config, progress, settings)
    from fdda_deploy.exporters.rules.finding import Finding

    findings = tuple(Finding(**row) for row in result.record["findings"])
    return CheckResult(findings, result.out, applies=bool(result.record["applies"]))


def _run(
    verb: str,
    until: str,
    model: str | None,
    config: PathLike | None,
    progress: bool,
    settings: Mapping[str, Any],
) -> BuildResult:
    resolved_config = resolved(verb, model, config, settings)  # a wrong one is told before torch
    from rich.console import Console

    from fdda_deploy.pipeline.run import ROAD
    from fdda_deploy.pipeline.run import build as run_the_road

    console = Console(stderr=True, quiet=not progress)
    done = run_the_road(resolved_config, until=until, console=console)
    ran = {stage["name"] for stage in done.stages}
    public = [name for stage in ROAD if stage.name in ran for name in stage.published.values()]
    return BuildResult(
        done.out,
        {name: done.out / name for name in public if (done.out / name).is_file()},
        tuple(StageTime(**stage) for stage in done.stages),
        done.record,
        done.report,
    )


def _question(path: Path, config: PathLike | None, settings: CheckSettings) -> FileQuestion:
    """Returns what is asked of an ONNX file.

    Raises:
        ConfigError: Settings that only a network has, or a repair without a place for its result.
    """
    for name in [*(["config"] if config is not None else []), *settings]:
        if name not in _OF_FILES:
            raise ConfigError(f"check({name}=...): has no meaning for an ONNX file. Leave it away.")
    target, fix, out = settings.get("target", "trt"), settings.get("fix", False), None
    if target not in FILE_TARGETS:
        raise ConfigError(
            f"check(target=...): unknown {target!r}.{near(target, FILE_TARGETS)} "
            f"Known: {', '.join(FILE_TARGETS)}."
        )
    if fix:
        out = Path(settings["out"]) if "out" in settings else None
        if out is None or out.resolve() == path.resolve():
            raise ConfigError("check(fix=True): give out=, another file than model.")
    elif {"out", "feed", "tolerance"} & settings.keys():
        raise ConfigError("check: out=, feed= and tolerance= go with fix=True.")
    require_compact_repair(settings.get("compact_plan"), target, fix=fix)
    known: dict[str, object] = {name: settings[name] for name in ("sm", "seed") if name in settings}
    plain = resolved("check", str(path), None, known)
    feed = settings.get("feed")
    return FileQuestion(
        path=path,
        target=target,
        compute_capabilities=plain.engine.sm,
        profiles_given=settings.get("profile", False),
        flags=tuple(settings.get("flag", ())),
        fixed=out,
        feed=None if feed is None else Path(feed),
        tolerance=settings.get("tolerance"),
        seed=plain.run.seed,
        compact_plan=settings.get("compact_plan"),
    )
