"""Every option of every command, defined once: the class below is the command line.

A field's name is the setting's name in the configuration (and its TOML file), its default is None
for "not given", and its annotation is what ``--help`` shows.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fdda_deploy.config import BuildConfig, config_from
from fdda_deploy.config.engine import BACKENDS, CALIBRATORS, HARDWARE_LEVELS, TARGETS
from fdda_deploy.config.sections import (
    CALIBRATE_ON,
    EFFORTS,
    FINETUNE_LOSSES,
    FLOAT_TYPES,
    OBSERVERS,
    RECIPES,
    SCALE_SEARCHES,
    SCHEDULES,
)
from fdda_deploy.config.values import near
from fdda_deploy.errors import ConfigError
from fdda_deploy.quant.scheme import PRESETS

NETWORK, IMAGES, SYNTHESIS = "The network", "Images", "Synthesis"
BITS, ENGINE, RUN, OUTPUT = "Bits", "Engine", "Run", "Output"


class UsageFaultError(ConfigError):
    """The command line itself is wrong, so the exit code is 2."""


def option(
    panel: str,
    help_text: str,
    metavar: str | None = None,
    flag: str = "",
    known: Sequence[str] = (),
) -> typing.Any:
    """Returns one row of the command line: where ``--help`` lists it, what it says.

    Args:
        panel: Heading in ``--help``.
        help_text: One line.
        metavar: Stands for the value.
        flag: The option, where it is not the field's name.
        known: Values that the shell offers to complete.
    """
    return typer.Option(
        *((flag,) if flag else ()),
        help=help_text,
        metavar=metavar,
        rich_help_panel=panel,
        autocompletion=completing(known),
    )


def one_of(panel: str, choices: tuple[str, ...], help_text: str) -> typing.Any:
    """Returns a row whose value is one of ``choices``; the configuration refuses others."""
    return option(panel, f"{help_text}: {', '.join(choices)}.", "NAME", known=choices)


def completing(known: Sequence[str]) -> Callable[[str], list[str]] | None:
    """Returns what typer asks for completions; None leaves an option to the shell (files)."""
    if not known:
        return None

    def complete(incomplete: str) -> list[str]:
        return [word for word in known if word.startswith(incomplete)]

    return complete


def require_one_of(flag: str, value: str | None, choices: Sequence[str]) -> None:
    """Refuses a value that is none of ``choices``; None is "not given".

    Raises:
        UsageFaultError: With the nearest choice, and all of them.
    """
    if value is not None and value not in choices:
        raise UsageFaultError(
            f"{flag}: unknown {value!r}.{near(value, choices)} Known: {', '.join(choices)}."
        )


@dataclass(frozen=True)
class Options:
    """What can be given to every command that takes a network."""

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="digits, a torchvision name, timm:NAME, package.module:callable, or "
            "path/file.py:callable. `fdda-deploy models` lists names.",
            show_default=False,
            autocompletion=completing(("digits",)),
        ),
    ] = None

    weights: Annotated[str | None, option(NETWORK, ".pth or .safetensors.", "FILE")] = None
    input_size: Annotated[str | None, option(NETWORK, "224, or 224x320 (HxW).", "SIZE")] = None
    resize: Annotated[int | None, option(NETWORK, "Shorter side before cropping.", "PX")] = None
    mean: Annotated[str | None, option(NETWORK, "Per channel: 0.485,0.456,0.406.", "A,B,C")] = None
    std: Annotated[str | None, option(NETWORK, "Per channel: 0.229,0.224,0.225.", "A,B,C")] = None
    num_classes: Annotated[int | None, option(NETWORK, "Number of logits.", "N")] = None

    calib_data: Annotated[
        str | None, option(IMAGES, "To calibrate on: a folder per class, .tar or .npz.", "PATH")
    ] = None
    eval_data: Annotated[
        str | None, option(IMAGES, "To measure accuracy on; same forms.", "PATH")
    ] = None
    tune_data: Annotated[
        str | None, option(IMAGES, "To choose widths on (--max-drop); same forms.", "PATH")
    ] = None
    classes: Annotated[
        str | None, option(IMAGES, "One class id a line, in the order of the logits.", "FILE")
    ] = None
    calib_limit: Annotated[int | None, option(IMAGES, "Use at most N of them.", "N")] = None
    eval_limit: Annotated[int | None, option(IMAGES, "Use at most N of them.", "N")] = None
    max_damaged: Annotated[int | None, option(IMAGES, "Damaged images to skip.", "N")] = None

    bits: Annotated[
        int | None, option(BITS, "Weight bits, 2 to 8, with 8-bit activations; default 4.", "N")
    ] = None
    scheme: Annotated[
        str | None,
        option(BITS, "w8a8, w4a8, w4a16, w4a4 ..., or fp8, fp16.", "NAME", known=PRESETS),
    ] = None
    float_type: Annotated[
        str | None, one_of(BITS, FLOAT_TYPES, "What is not quantized runs in")
    ] = None
    weight_bits: Annotated[int | None, option(BITS, "2 to 8.", "N")] = None
    act_bits: Annotated[int | None, option(BITS, "2 to 8, or 16 for floating point.", "N")] = None
    first_last_bits: Annotated[
        int | None, option(BITS, "First and last weighted layer; default 8.", "N")
    ] = None
    observer: Annotated[str | None, one_of(BITS, OBSERVERS, "How ranges are found")] = None
    scale_search: Annotated[str | None, one_of(BITS, SCALE_SEARCHES, "And refined")] = None
    calibrate_on: Annotated[str | None, one_of(BITS, CALIBRATE_ON, "Images that set ranges")] = None
    effort: Annotated[str | None, one_of(BITS, EFFORTS, "How weights are rounded")] = None
    memory_limit: Annotated[
        float | None, option(BITS, "Of RAM, for rounding and training; default 4.", "GIB")
    ] = None
    max_drop: Annotated[
        float | None,
        option(BITS, "Widen layers until top-1 drops by at most this.", "POINTS"),
    ] = None
    finetune: Annotated[
        bool | None,
        option(BITS, "Distil into the quantized network.", flag="--finetune/--no-finetune"),
    ] = None
    finetune_steps: Annotated[int | None, option(BITS, "Steps of it.", "N")] = None
    finetune_loss: Annotated[str | None, one_of(BITS, FINETUNE_LOSSES, "Its loss")] = None
    psg: Annotated[
        bool | None, option(BITS, "Position-scaled gradients.", flag="--psg/--no-psg")
    ] = None
    scale_clip: Annotated[
        float | None, option(BITS, "Hold weights within K mean|W|, for instance 2.5.", "K")
    ] = None
    compact_plan: Annotated[
        bool | None,
        option(
            BITS,
            "w8a8 on rtx: coarser scales, smaller plan; default there.",
            flag="--compact-plan/--no-compact-plan",
        ),
    ] = None

    recipe: Annotated[str | None, one_of(SYNTHESIS, RECIPES, "How images are made")] = None
    schedule: Annotated[str | None, one_of(SYNTHESIS, SCHEDULES, "How long")] = None
    num_steps: Annotated[
        int | None, option(SYNTHESIS, "Steps of the generator, or of each batch.", "N")
    ] = None
    num_images: Annotated[int | None, option(SYNTHESIS, "Images to keep.", "N")] = None
    fast: Annotated[
        bool | None,
        option(
            SYNTHESIS,
            "Shortcuts, or the plain float32 loop.",
            flag="--synthesis-fast/--no-synthesis-fast",
        ),
    ] = None
    cuda_graphs: Annotated[
        bool | None,
        option(SYNTHESIS, "On a GPU, launch whole graphs.", flag="--cuda-graphs/--no-cuda-graphs"),
    ] = None

    backend: Annotated[str | None, one_of(ENGINE, BACKENDS, "What runs it")] = None
    target: Annotated[
        str | None,
        one_of(ENGINE, TARGETS, "Whose placement table, if not the backend's"),
    ] = None
    sm: Annotated[
        str | None, option(ENGINE, "Compute capabilities: 86,89,120; default portable.", "LIST")
    ] = None
    min_batch: Annotated[int | None, option(ENGINE, "Smallest batch; default 1.", "N")] = None
    opt_batch: Annotated[int | None, option(ENGINE, "Batch to tune for; default 8.", "N")] = None
    max_batch: Annotated[int | None, option(ENGINE, "Largest batch; default 64.", "N")] = None
    opt_level: Annotated[
        int | None, option(ENGINE, "0 (builds fast) to 5 (runs fast).", "LEVEL")
    ] = None
    workspace: Annotated[int | None, option(ENGINE, "Scratch memory of kernels.", "MIB")] = None
    hardware_compatible: Annotated[
        str | None, one_of(ENGINE, HARDWARE_LEVELS, "For more GPUs than this one")
    ] = None
    version_compatible: Annotated[
        bool | None,
        option(ENGINE, "For later releases of TensorRT too.", flag="--version-compatible"),
    ] = None
    strip: Annotated[bool | None, option(ENGINE, "Weights stay out.", flag="--strip")] = None
    timing_cache: Annotated[
        str | None, option(ENGINE, "Keep kernel timings for the next build.", "FOLDER")
    ] = None
    bench_batches: Annotated[
        str | None, option(ENGINE, "To time, for a curve in the report: 1,8,32.", "LIST")
    ] = None
    calibrator: Annotated[
        str | None, one_of(ENGINE, CALIBRATORS, "Who calibrates on TensorRT 10")
    ] = None

    config: Annotated[
        Path | None,
        option(RUN, "TOML file with any of these options; flags win.", "FILE.toml"),
    ] = None
    out: Annotated[
        str | None, option(RUN, "Result folder; default out/MODEL-SCHEME.", "FOLDER")
    ] = None
    device: Annotated[
        str | None, option(RUN, "auto, cpu, cuda or cuda:N.", "NAME", known=("auto", "cpu", "cuda"))
    ] = None
    seed: Annotated[int | None, option(RUN, "Default 0.", "N")] = None
    batch_size: Annotated[int | None, option(RUN, "Images at a time; default 32.", "N")] = None
    threads: Annotated[int | None, option(RUN, "CPU threads.", "N")] = None
    no_cache: Annotated[bool | None, option(RUN, "Do every stage again.", flag="--no-cache")] = None

    quiet: Annotated[bool, option(OUTPUT, "No progress and no table.", flag="--quiet")] = False
    json_output: Annotated[bool, option(OUTPUT, "Result as JSON on stdout.", flag="--json")] = False

    def build_config(self) -> BuildConfig:
        """Returns the configuration of flags and ``--config`` together.

        Raises:
            ConfigError: The file is wrong.
            UsageFaultError: The flags are, alone or with the file.
        """
        settings = {field.name for field in dataclasses.fields(Options)} - _NOT_SETTINGS
        flags = {name: value for name, value in vars(self).items() if name in settings}
        if self.config is not None:
            config_from(self.config, {"model": "checks the file alone"})
        try:
            return config_from(self.config, flags)
        except ConfigError as error:
            raise UsageFaultError(str(error)) from None


_NOT_SETTINGS = {"config", "quiet", "json_output"}

Given = typing.TypeVar("Given", bound=Options)
"""Options, or a command's own extension of it."""


def takes_options(command: Callable[[Given], None]) -> Callable[..., None]:
    """Gives ``command(options)`` the parameters that typer reads: one per field of its options."""
    kind: type[Given] = typing.get_type_hints(command)["options"]

    @functools.wraps(command)
    def with_parameters(**values: typing.Any) -> None:
        command(kind(**values))

    hints = typing.get_type_hints(kind, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(kind)
    ]
    described: typing.Any = with_parameters
    described.__signature__ = inspect.Signature(parameters)
    described.__annotations__ = hints
    return with_parameters
