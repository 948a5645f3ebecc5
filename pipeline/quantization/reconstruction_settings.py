"""How long and how hard a block is reconstructed, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from fdda_deploy.errors import ConfigError

GRANULARITIES = ("block", "layer")
FEWEST_IMAGES = 16


@dataclass(frozen=True)
class ReconstructionSettings:
    """One schedule of reconstruction.

    Attributes:
        num_steps: Adam steps per block.
        batch_size: Images per step.
        granularity: ``block`` (BRECQ, arXiv 2102.05426) or ``layer`` (AdaRound, arXiv 2004.10568).
        rounding_lr: Of V in ``h(V)`` (`soft_rounding`).
        scale_lr: Of the logarithm of each weight scale, so a relative rate; 0 keeps the scales.
        step_lr: The same of each activation scale; 0 keeps them.
        bias_lr: Of the biases, in their own unit; 0 keeps them.
        drop: QDrop: probability that an activation element stays in float while training, and that
            an element of the block's input is the float network's (arXiv 2203.05740); 0 turns both
            off.
        decide: lambda of ``sum(1 - |2h - 1|^beta)``, which drives each weight to one integer.
        warmup: Share of the steps before that pressure begins.
        predict: Weight of KL(float || quantized) of the final prediction, with the rest of the
            float network behind the block (PD-Quant, arXiv 2212.07048: 0.1); 0 leaves it out.
        autocast: bfloat16 arithmetic on a CUDA device.

    Raises:
        ConfigError: A value that is out of range, or choices that exclude each other.
    """

    num_steps: int
    batch_size: int = 32
    granularity: str = "block"
    rounding_lr: float = 1e-3
    scale_lr: float = 1e-4
    step_lr: float = 4e-5
    bias_lr: float = 1e-3
    drop: float = 0.5
    decide: float = 0.01
    warmup: float = 0.2
    predict: float = 0.0
    autocast: bool = False

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise ConfigError(
                f"reconstruction granularity {self.granularity!r}: want one of "
                f"{', '.join(GRANULARITIES)}."
            )
        for name in ("num_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"reconstruction {name} {getattr(self, name)}: want 1 or more.")
        for name in ("rounding_lr", "scale_lr", "step_lr", "bias_lr", "decide", "predict"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"reconstruction {name} {getattr(self, name)}: want 0 or more.")
        for name in ("drop", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"reconstruction {name} {getattr(self, name)}: want a share in [0, 1)."
                )
        if self.predict > 0 and self.granularity == "layer":
            raise ConfigError(
                "reconstruction predict needs whole blocks, because the rest of the network starts "
                "behind one. Choose granularity 'block', or predict 0."
            )

    @property
    def images_wanted(self) -> int:
        """Fewest images it makes sense with: a batch, and no less than 16."""
        return max(self.batch_size, FEWEST_IMAGES)


RECONSTRUCTION: dict[str, ReconstructionSettings] = {
    "short": ReconstructionSettings(
        num_steps=200, batch_size=16, rounding_lr=3e-3, scale_lr=1e-3, step_lr=1e-3, drop=0.0
    ),
    "best": ReconstructionSettings(num_steps=20_000),
}
"""By name: ``best`` is the published schedule; ``short`` is for nearest rounding, too short
for QDrop to pay (cifar_resnet20 w4a4, KL 0.033 with it, 0.021 without; one seed)."""


@dataclass(frozen=True)
class BlockOutcome:
    """What became of one block, or with granularity ``layer`` of one layer.

    Attributes:
        source: Node whose value it reads.
        result: Node whose value was matched.
        layers: The weighted nodes inside.
        error_before: Weighted mean squared error of the output relative to its mean square, on the
            images given, with everything before the block already reconstructed.
        error_after: The same afterwards, for what is kept.
        kept: The learned solution stays; else the one from before.
        restarts: Times it was begun again at a tenth of the rates.
        skipped: Nothing to learn: no error, or all that is inside is shared with other blocks.
        batch_size: Images per step that fitted the memory limit.
    """

    source: str
    result: str
    layers: tuple[str, ...]
    error_before: float
    error_after: float
    kept: bool
    restarts: int
    skipped: bool
    batch_size: int


@dataclass(frozen=True)
class ReconstructionResult:
    """What reconstruction did.

    Attributes:
        blocks: In graph order.
        left: Initializers of quantized weights it did not touch, because several blocks share them.
        warnings: One line for each block that kept its old solution, and for a reduced batch.
        num_images: Images it learned from.
        seconds: Wall time.
    """

    blocks: tuple[BlockOutcome, ...]
    left: tuple[str, ...]
    warnings: tuple[str, ...]
    num_images: int
    seconds: float = field(compare=False)
