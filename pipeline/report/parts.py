"""The parts of report.json, one TypedDict each; what they share is said in ``schema``."""

from __future__ import annotations

from typing import Annotated, NotRequired, TypedDict

from fdda_deploy.pipeline.report.checking import Between

Percent = Annotated[float, Between(0, 100)]
Points = Annotated[float, Between(-100, 100)]
Count = Annotated[int, Between(0)]
Seconds = Annotated[float, Between(0)]
Milliseconds = Annotated[float, Between(0)]
Size = Annotated[int, Between(0)]
Curve = list[float | None]
"""One value per recorded step; None where the loss was not finite."""


class Model(TypedDict):
    """The float network.

    Attributes:
        name: As the user named it.
        origin: Where the weights came from.
        digest: sha256 of the weights, or None.
        input: ``[C, H, W]``.
        preprocessing: Anything that JSON can say: one sentence, or resize, crop, mean and std.
    """

    name: str
    origin: str | None
    digest: str | None
    parameters: Count | None
    input: list[Count]
    classes: Count | None
    batchnorm_layers: Count | None
    preprocessing: object


class CalibrationData(TypedDict):
    """The images that were given; ``recipe``: what had synthesized them, None for real ones."""

    origin: str | None
    n: Count
    classes_covered: Count | None
    digest: str | None
    recipe: NotRequired[str | None]


class SyntheticData(TypedDict):
    """The images made from the network; ``teacher_top1``: how often it names the wanted class."""

    n: Count
    teacher_top1: Percent | None


class CalibratedOn(TypedDict):
    """How many images of each kind set the ranges."""

    real: Count
    synthetic: Count


class EvaluationData(TypedDict):
    """The labelled images that accuracy was measured on; ``skipped``: damaged ones."""

    origin: str | None
    n: Count
    digest: str | None
    skipped: Count | None


class Deploy(TypedDict):
    """What `fdda-deploy package` needs beside the files.

    Attributes:
        preprocessing: height, width, channels, resize, mean, std and interpolation as numbers.
        class_names: In label order; None where they are not known.
        platform: Where the plan was built, for instance ``linux-x86_64``.
        gpu: The GPU there, or None.
        compute_capability: That GPU's, 89 for SM89.
        batches: Smallest, usual and largest batch of the plan; None without a plan.
    """

    preprocessing: dict[str, object]
    class_names: list[str] | None
    platform: str
    gpu: str | None
    compute_capability: Count | None
    batches: list[Count] | None


class Data(TypedDict):
    """Which images did what."""

    calibration: CalibrationData | None
    synthetic: SyntheticData | None
    calibrated_on: CalibratedOn | None
    evaluation: EvaluationData | None


class Measured(TypedDict):
    """One network's accuracy: ``low`` and ``high`` bound ``top1`` with 95 % confidence."""

    top1: Percent
    top5: Percent | None
    n: Count
    low: Percent | None
    high: Percent | None
    runs_on: str | None


class Drop(TypedDict):
    """Float minus quantized top-1 in points (a loss is positive): paired, 95 % interval."""

    mean: Points
    low: Points | None
    high: Points | None


class Accuracy(TypedDict):
    """Before and after; ``agreement``: percent of images on which both name the same class."""

    float: Measured
    quantized: Measured
    drop: Drop
    agreement: Percent | None
    torch_quantized: NotRequired[Measured | None]


class Sizes(TypedDict):
    """Bytes of each artefact."""

    fp32_onnx: Size | None
    qdq_onnx: Size | None
    plan: Size | None
    fp32_plan: Size | None


class Layer(TypedDict):
    """One weighted layer: what it runs in, how much noise that adds, and why it is so."""

    name: str
    op: str
    weight_bits: Count | None
    act_bits: Count | None
    precision: str
    weight_sqnr_db: float | None
    output_sqnr_db: float | None
    reason: str | None


class Parity(TypedDict):
    """Torch against ONNX Runtime on the same images; ``relative_l2`` of the logits is a ratio."""

    top1_agreement: Percent | None
    relative_l2: float | None
    n: Count


class Finding(TypedDict):
    """One broken or risky TensorRT rule."""

    rule: str
    severity: str
    node: str | None
    tensor: str | None
    value: object
    why: str | None
    repair: str | None


class Check(TypedDict):
    """The TensorRT rule check of the exported graph."""

    errors: Count
    warnings: Count
    notes: Count
    findings: list[Finding]


class Engine(TypedDict):
    """What the builder made.

    Attributes:
        status: ``built``, ``failed``, ``skipped``, or another few words; ``failed`` is a verdict.
        compute_capabilities: For instance ``[86, 89]``; empty for a portable plan.
    """

    backend: str | None
    version: str | None
    status: str
    plan_bytes: Size | None
    compute_capabilities: list[int | str] | None
    seconds: Seconds | None
    detail: str | None


class LatencyMs(TypedDict):
    """Milliseconds per batch."""

    mean: Milliseconds
    median: Milliseconds
    p90: Milliseconds
    p95: Milliseconds
    p99: Milliseconds


class Timing(TypedDict):
    """One timed run; ``what`` names the graph and the device; ``unstable``: it varied too much."""

    what: str
    batch: Count
    num_threads: NotRequired[Count | None]
    latency_ms: LatencyMs
    cov_percent: float | None
    unstable: bool
    images_per_s: float | None


class Bench(TypedDict):
    """Timings by device, one image at a time. A CPU timing never stands in for the GPU's.

    Attributes:
        sweep: The same at every batch that was asked for.
    """

    gpu: Timing | None
    cpu: Timing | None
    float_cpu: Timing | None
    sweep: NotRequired[list[Timing]]


class Synthesis(TypedDict):
    """How the images were made, and how well they pass for training data.

    Attributes:
        published_steps: The length of the paper's schedule.
        teacher_top1: None where the float network's own prediction labels the images.
        teacher_confidence: Mean probability that it gives its prediction, in percent.
        bns_distance: By layer, mean squared gap of BatchNorm statistics to those of training.
        noise_distance: The same for Gaussian noise images.
        diversity: Mean cosine distance of two images' penultimate features, 0 to 2.
        class_spread: The same within a label.
        real_diversity: That of the real images, where there are labelled ones.
        real_class_spread: The same within a class; None with one image per class.
    """

    recipe: str
    steps: Count
    published_steps: Count | None
    num_images: Count
    seconds: Seconds | None
    history: dict[str, Curve]
    history_every: Count
    teacher_top1: Percent | None
    bns_distance: Curve
    layer_names: list[str]
    teacher_confidence: NotRequired[Percent | None]
    noise_distance: NotRequired[Curve]
    diversity: NotRequired[float | None]
    class_spread: NotRequired[float | None]
    real_diversity: NotRequired[float | None]
    real_class_spread: NotRequired[float | None]


class Finetune(TypedDict):
    """Distillation into the quantized network.

    Attributes:
        kept: The held-out ``metric`` improved, so the new weights stay.
        history_every: Steps between two values of ``history``; 1 if absent.
    """

    steps: Count
    kept: bool
    metric: str
    before: float | None
    after: float | None
    history: dict[str, Curve]
    history_every: NotRequired[Count]
    reason: str | None


class Stage(TypedDict):
    """One stage of the road; ``cached``: an earlier build had done it."""

    name: str
    seconds: Seconds
    cached: bool
