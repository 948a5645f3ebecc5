"""The sections of a build's configuration: what each setting means and where its default is from.

Every section checks its own values, so a configuration that exists is a valid one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from fdda_deploy.config.compact_plan import as_published, require_compact_plan
from fdda_deploy.config.engine import EngineConfig
from fdda_deploy.config.values import Section, limited, title_of
from fdda_deploy.errors import ConfigError
from fdda_deploy.quant.scheme import NUMBERS, Scheme

Scalar = bool | int | float | str
Override = Scalar | tuple[Scalar, ...]
RECIPES = ("auto", "fdda", "fdda-paper", "gdfq", "zeroq", "dsg", "lrq", "genie", "none")
SCHEDULES = ("auto", "published", "reduced")
OBSERVERS = ("mse", "lp", "minmax", "percentile", "entropy")
EFFORTS = ("auto", "none", "fast", "normal", "best")
SCALE_SEARCHES = ("none", "easyquant")
FINETUNE_LOSSES = ("fdda", "dkd")
FLOAT_TYPES = ("auto", "fp32", "fp16")
CALIBRATE_ON = ("auto", "real", "synthetic", "both")


@dataclass(frozen=True)
class ModelConfig(Section):
    """Which network, and how its input is prepared.

    Attributes:
        name: ``digits``, a torchvision name, ``timm:NAME``, ``package.module:callable`` or
            ``path/file.py:callable``; no default.
        weights: A ``.pth`` or ``.safetensors`` file; None takes the weights that the name brings.
        input_size: (height, width) in pixels; None asks the model.
        resize: Shorter side in pixels before the center crop; None asks the model.
        mean: Per channel, in units of pixels scaled to [0, 1]; None asks the model.
        std: Per channel, same units, above 0; None asks the model.
        num_classes: Number of logits; None asks the model.
    """

    name: str = limited(pattern=r".*\S.*", wanted="the name of a model")
    weights: str | None = None
    input_size: tuple[int, int] | None = limited(None, minimum=1, maximum=8192)
    resize: int | None = limited(None, minimum=1, maximum=16384)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = limited(None, minimum=1e-6)
    num_classes: int | None = limited(None, minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, value in (("mean", self.mean), ("std", self.std)):
            if value is not None and not value:
                raise ConfigError(f"[model] {key}: got an empty list, wanted one number a channel.")
        if self.mean and self.std and len(self.mean) != len(self.std):
            raise ConfigError(
                f"[model] mean has {len(self.mean)} values and std {len(self.std)}: "
                "want one of each per channel."
            )


@dataclass(frozen=True)
class DataConfig(Section):
    """Which images and labels.

    Attributes:
        calib_data: Folder, ``.tar`` or ``.npz`` of images to calibrate and fine-tune on; None uses
            the model's own split, or no real image at all.
        eval_data: The same for measuring accuracy; None uses the model's own split, or skips.
        tune_data: The same for choosing between widths with ``max_drop``; never the images of
            ``eval_data``. None takes images held out of fine-tuning, without labels.
        classes: File with one class id a line, in the order of the logits; None sorts folder names.
        calib_limit: Most images read from ``calib_data``; None reads all.
        eval_limit: Most images read from ``eval_data``; None reads all.
        max_damaged: Damaged images that are named and skipped before it is an error; 10 lets a few
            broken downloads pass and no broken data set.
    """

    calib_data: str | None = None
    eval_data: str | None = None
    tune_data: str | None = None
    classes: str | None = None
    calib_limit: int | None = limited(None, minimum=1)
    eval_limit: int | None = limited(None, minimum=1)
    max_damaged: int = limited(10, minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tune_data is not None and self.tune_data == self.eval_data:
            raise ConfigError(
                f"--tune-data and --eval-data are both {self.tune_data}: what chooses the widths "
                "cannot also measure them. Give other images to one of them."
            )


@dataclass(frozen=True)
class SynthesisConfig(Section):
    """How images are made from the network.

    Attributes:
        recipe: ``auto`` is ``fdda`` with labelled images, ``genie`` without, ``none`` from 1000
            images on or where there is no BatchNorm.
        schedule: ``published`` is the paper's length; ``auto`` takes the reduced one on a CPU.
        num_steps: Steps of the generator, or of each batch of learned images; None takes the
            schedule's.
        num_images: Synthetic images that are kept; None takes the recipe's.
        fast: Use shortcuts that change nothing but rounding; False is the plain float32 loop.
        cuda_graphs: On a GPU, launch the float network's kernels as CUDA graphs; off until that is
            measured there.
        overrides: Single settings of the recipe by name, from ``[synthesis.overrides]``.
    """

    recipe: str = limited("auto", choices=RECIPES)
    schedule: str = limited("auto", choices=SCHEDULES)
    num_steps: int | None = limited(None, minimum=1)
    num_images: int | None = limited(None, minimum=1)
    fast: bool = True
    cuda_graphs: bool = False
    overrides: dict[str, Override] = field(default_factory=dict)


@dataclass(frozen=True)
class QuantizeConfig(Section):
    """How many bits, and how ranges and weights are found.

    Attributes:
        weight_bits: 2 to 8; 4 is the width this tool is about.
        act_bits: 2 to 8, or 16 for floating point; 8 is what tensor cores execute.
        first_last_bits: 2 to 8 for the first and last weighted layer; 8 as in the field's tables.
        numbers: ``integer``; ``fp8`` for E4M3; ``fp16`` quantizes nothing. ``scheme`` sets it.
        float_type: What is not quantized runs in; ``auto`` is fp16 where activations stay in
            floating point, else fp32: then torch computes exactly what the engine is asked for.
        observer: How ranges are chosen; MSE was the best or close to it in published INT8 tables.
        scale_search: ``easyquant`` then searches all scales by each layer's output.
        calibrate_on: Which images set the ranges; ``auto`` takes real ones where there are enough.
        effort: How weights are rounded: ``none`` to nearest, ``fast`` in closed form; ``normal``
            then distils scales and biases, ``best`` reconstructs blocks before, hours on a CPU;
            ``auto`` is ``normal`` up to 64 px or on a GPU, else ``fast``, minutes on two cores.
        memory_limit: GiB that rounding, reconstruction and fine-tuning may take; activations beyond
            it go to disk. 4 is what a small machine can spare.
        max_drop: Most top-1 points that may be lost: the cheapest widths per layer (the scheme's, 8
            bits or float) that hold it on the tune images; None gives every layer the scheme's.
        finetune: Distil the float network into the quantized one; None does so unless the effort is
            ``fast``.
        finetune_steps: Steps of it; None takes the schedule's.
        finetune_loss: ``fdda`` as published, or ``dkd``, decoupled distillation.
        psg: Scale the weights' gradients by their distance from the grid; off as in FDDA.
        scale_clip: k of GDRQ's Scale-Clip, which holds weights within k mean|W| of their channel;
            2 to 3 at low widths; None does without, as FDDA does.
        compact_plan: w8a8 on ``rtx`` trades for a plan that is half as large or less: one scale per
            weight, one per shape of activations, and float where INT8 costs more bytes than it
            saves; not with ``scale_search``, ``psg`` or ``scale_clip``, which set each channel's.
            None does so wherever it can; True refuses where it cannot.
    """

    weight_bits: int = 4
    act_bits: int = 8
    first_last_bits: int = 8
    numbers: str = limited("integer", choices=NUMBERS)
    float_type: str = limited("auto", choices=FLOAT_TYPES)
    observer: str = limited("mse", choices=OBSERVERS)
    scale_search: str = limited("none", choices=SCALE_SEARCHES)
    calibrate_on: str = limited("auto", choices=CALIBRATE_ON)
    effort: str = limited("auto", choices=EFFORTS)
    memory_limit: float = limited(4.0, minimum=1.0, maximum=4096.0)
    max_drop: float | None = limited(None, minimum=0, maximum=100)
    finetune: bool | None = None
    finetune_steps: int | None = limited(None, minimum=1)
    finetune_loss: str = limited("fdda", choices=FINETUNE_LOSSES)
    psg: bool = False
    scale_clip: float | None = limited(None, minimum=1.1, maximum=100.0)
    compact_plan: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.scheme  # refuses widths out of range
        searches = self.scale_search != "none" or self.max_drop is not None or self.finetune
        if self.numbers != "integer" and (searches or self.effort not in {"auto", "none"}):
            raise ConfigError(
                f"--scheme {self.numbers} rounds to nearest: --effort, --finetune, --scale-search "
                "and --max-drop are for integer grids. Leave them out, or take --scheme w8a8."
            )

    @property
    def scheme(self) -> Scheme:
        """The bit widths as one record."""
        return Scheme(self.weight_bits, self.act_bits, self.first_last_bits, self.numbers)

    @property
    def casts_to_half(self) -> bool:
        """Whether the exported graph computes in FP16 what it does not quantize."""
        if self.float_type == "auto":
            return self.scheme.weight_only
        return self.float_type == "fp16"


@dataclass(frozen=True)
class RunConfig(Section):
    """Where and how the build runs.

    Attributes:
        device: ``auto`` takes the GPU where torch sees one.
        seed: Of every random generator; 0 for no reason but that a default must be fixed.
        out: Result folder; None is ``out/<model>-<scheme>``.
        batch_size: Images per forward pass; 32 keeps 224-pixel networks under 3 GB on a CPU.
        no_cache: Do every stage again, also those that are finished.
        threads: CPU threads; None leaves the choice to torch and ONNX Runtime.
    """

    device: str = limited(
        "auto", pattern=r"auto|cpu|cuda(:\d{1,3})?", wanted="auto, cpu, cuda or cuda:N"
    )
    seed: int = limited(0, minimum=0, maximum=2**32 - 1)
    out: str | None = limited(None, pattern=r"[^\0]+", wanted="a folder")
    batch_size: int = limited(32, minimum=1)
    no_cache: bool = False
    threads: int | None = limited(None, minimum=1)


@dataclass(frozen=True)
class BuildConfig:
    """Everything that decides the result of one build."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    quantize: QuantizeConfig = QuantizeConfig()
    engine: EngineConfig = field(default_factory=EngineConfig)
    run: RunConfig = RunConfig()

    def __post_init__(self) -> None:
        self.engine.require_batch(self.run.batch_size, "--batch-size")
        require_compact_plan(
            self.quantize, self.engine.stated_target, published=as_published(self.synthesis)
        )
        if self.data.tune_data is not None and self.quantize.max_drop is None:
            raise ConfigError(
                f"--tune-data {self.data.tune_data}: only --max-drop uses it, which is not given. "
                "Add --max-drop POINTS, or leave --tune-data out."
            )

    @property
    def out_folder(self) -> Path:
        """The result folder: as given, or ``out/<model>-<scheme>`` with the name made a file name.

        Example:
            >>> BuildConfig(ModelConfig("nets/mine.py:small")).out_folder.as_posix()
            'out/mine.py-small-w4a8'
        """
        if self.run.out is not None:
            return Path(self.run.out)
        stem = re.sub(r"[^\w.-]+", "-", re.split(r"[/\\]", self.model.name)[-1]).strip("-.")
        return Path("out") / f"{stem[:80] or 'model'}-{self.quantize.scheme.name}"


SECTIONS: dict[str, type[Section]] = {
    title_of(section): section
    for section in (
        ModelConfig,
        DataConfig,
        SynthesisConfig,
        QuantizeConfig,
        EngineConfig,
        RunConfig,
    )
}
"""Every section by the name of its TOML table, in the order of the file."""
