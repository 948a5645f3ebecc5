"""Every setting of the Python API: the names and meanings of the command line's options."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from fdda_deploy.config import BuildConfig, config_from
from fdda_deploy.config.values import near, plain_name
from fdda_deploy.errors import ConfigError

PathLike = str | os.PathLike[str]


class NetworkSettings(TypedDict, total=False):
    """The network, and the images."""

    weights: PathLike
    input_size: int | tuple[int, int]
    resize: int
    mean: Sequence[float]
    std: Sequence[float]
    num_classes: int
    calib_data: PathLike
    eval_data: PathLike
    tune_data: PathLike
    classes: PathLike
    calib_limit: int
    eval_limit: int
    max_damaged: int


class QuantizeSettings(TypedDict, total=False):
    """How many bits, and how ranges and weights are found."""

    bits: int
    scheme: str
    float_type: str
    weight_bits: int
    act_bits: int
    first_last_bits: int
    observer: str
    scale_search: str
    calibrate_on: str
    effort: str
    memory_limit: float
    max_drop: float
    finetune: bool
    finetune_steps: int
    finetune_loss: str
    psg: bool
    scale_clip: float
    compact_plan: bool


class SynthesisSettings(TypedDict, total=False):
    """How images are made from the network."""

    recipe: str
    schedule: str
    num_steps: int
    num_images: int
    fast: bool
    cuda_graphs: bool


class EngineSettings(TypedDict, total=False):
    """What runs the graph, and how its plan is built."""

    backend: str
    target: str
    sm: Sequence[int]
    min_batch: int
    opt_batch: int
    max_batch: int
    opt_level: int
    workspace: int
    hardware_compatible: str
    version_compatible: bool
    strip: bool
    timing_cache: PathLike
    bench_batches: Sequence[int]
    calibrator: str


class Settings(NetworkSettings, QuantizeSettings, SynthesisSettings, EngineSettings, total=False):
    """Settings of every verb; `docs/cli.md` says what each means, its limits and its default."""

    out: PathLike
    device: str
    seed: int
    batch_size: int
    threads: int
    no_cache: bool


class CheckSettings(Settings, total=False):
    """Settings of `check`: those of every verb, and those for an ONNX file."""

    fix: bool
    tolerance: float
    feed: PathLike
    profile: bool
    flag: Sequence[str]


def resolved(
    verb: str, model: str | None, config: PathLike | None, settings: Mapping[str, object]
) -> BuildConfig:
    """Returns the configuration of a call, as the command of the same name would resolve it.

    Args:
        verb: For messages.
        model: MODEL of the command line; None takes the one in ``config``.
        config: A TOML file, or None; settings win.
        settings: By name; None means not given.

    Raises:
        ConfigError: An unknown setting (the nearest is named), or what the command line refuses.
    """
    require_known(verb, settings, Settings.__annotations__)
    flags = {name: _plain(value) for name, value in settings.items()}
    return config_from(None if config is None else Path(config), {"model": model, **flags})


def require_known(verb: str, given: Mapping[str, object], known: Mapping[str, object]) -> None:
    """Refuses settings that ``verb`` does not have.

    Raises:
        ConfigError: With the nearest name.
    """
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{verb}({plain_name(name)}=...): unknown setting.{near(name, known)} "
                f"`fdda-deploy {verb} --help` lists them all."
            )


def _plain(value: object) -> object:
    """Returns a path as text and any other sequence as a list, as TOML would bring them."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value
