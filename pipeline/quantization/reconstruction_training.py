"""The learned half of reconstruction: one unit, its stand-ins, its loss and its steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import kl_div, log_softmax

from fdda_deploy.pipeline.quantization.activation_store import ActivationStore
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.fixed_integers import bias_names
from fdda_deploy.pipeline.quantization.learned_step import LearnedStep, mixed
from fdda_deploy.pipeline.quantization.reconstruction_settings import ReconstructionSettings
from fdda_deploy.pipeline.quantization.shared_scales import sharing_tensors
from fdda_deploy.pipeline.quantization.soft_rounding import SoftRounding, annealed_beta
from fdda_deploy.quant.points import WeightPoint

CHECK_EVERY = 50
"""Steps between two looks at whether the loss is still a number."""


@dataclass(frozen=True)
class Samples:
    """What a unit learns from; the three stores hold one image per batch, in the same order.

    Attributes:
        inputs: Values the quantized network gives the unit.
        float_inputs: The same of the float network.
        targets: What the float network makes of them.
        channel_axis: Of the targets.
        energy: Median of ``|y|^2`` over the positions of the targets.
        rest: Float network from the targets to the prediction; None leaves that term out.
        device: Where to compute.
    """

    inputs: ActivationStore
    float_inputs: ActivationStore
    targets: ActivationStore
    channel_axis: int
    energy: float
    rest: fx.GraphModule | None
    device: torch.device

    def take(self, store: ActivationStore, chosen: list[int]) -> Tensor:
        """Returns the images of one store by number, on the device."""
        return torch.cat([store.batch(index) for index in chosen]).to(self.device)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (inputs, targets) of all images in order."""
        for start in range(0, len(self.inputs), size):
            chosen = list(range(start, min(start + size, len(self.inputs))))
            yield self.take(self.inputs, chosen), self.take(self.targets, chosen)


def robust_weights(target: Tensor, channel_axis: int, energy: float) -> Tensor:
    """Returns ``1 / (1 + |y|^2 / energy)`` per position, with the channel axis kept as 1.

    A few positions of a trained network hold activations of hundreds of times the energy of the
    others; unweighted, they alone would be reconstructed.
    """
    return 1 / (1 + target.square().sum(dim=channel_axis, keepdim=True) / energy)


def median_energy(targets: ActivationStore, channel_axis: int) -> float:
    """Returns the median of ``|y|^2`` over the positions of the first 64 images, zeros left out."""
    first = range(min(64, len(targets)))
    found = torch.cat([targets.batch(i).square().sum(dim=channel_axis).flatten() for i in first])
    positive = found[found > 0]
    return float(positive.median()) if len(positive) else 1.0


def reconstruction_loss(output: Tensor, target: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Returns ``mean_w(|output - target|^2)``: summed over channels, averaged over positions.

    BRECQ (arXiv 2102.05426, eq. 10) with the identity for the Fisher matrix, and weighted by
    `robust_weights`.
    """
    distance = (output - target).square().sum(dim=axis, keepdim=True)
    return (weights * distance).sum() / weights.sum()


@torch.no_grad()
def relative_error(part: nn.Module, samples: Samples, batch_size: int) -> float:
    """Returns weighted squared error of a unit over weighted square of its target, all images."""
    noise = signal = 0.0
    for x, y in samples.batches(batch_size):
        w = robust_weights(y, samples.channel_axis, samples.energy)
        noise += float((w * (part(x) - y).square()).sum(dtype=torch.float64))
        signal += float((w * y.square()).sum(dtype=torch.float64))
    return noise / signal if signal > 0 else (0.0 if noise == 0 else math.inf)


class StandIns:
    """What one unit learns, in place of its quantizers: roundings, activation steps, biases.

    Args:
        network: Calibrated; only its biases change before `write_back`.
        part: The unit's graph, extracted from it; the stand-ins go in there alone.
        targets: Weights before they were rounded, by initializer, in torch layout.
        learnable: Targets of the graph that this unit alone uses.
        settings: Which of them are learned.
        generator: Of QDrop.
    """

    def __init__(
        self,
        network: QuantNetwork,
        part: fx.GraphModule,
        targets: dict[str, Tensor],
        learnable: set[str],
        settings: ReconstructionSettings,
        generator: torch.Generator,
    ) -> None:
        self._network = network
        self.roundings: dict[str, SoftRounding] = {}
        self.steps: dict[str, LearnedStep] = {}
        keys = {child: key for key, child in part.named_children()}
        shared = {tensor for tensors in sharing_tensors(network) for tensor in tensors}
        for point in network.placement.weights:
            quantizer = network.weight_quantizers[point.initializer]
            if keys.get(quantizer) in learnable:
                rounding = SoftRounding(
                    network.weight(point),
                    quantizer,
                    targets[point.initializer],
                    learn_scale=settings.scale_lr > 0,
                )
                self.roundings[point.initializer] = rounding
                part.add_module(keys[quantizer], rounding)
        for tensor, activation in network.activation_quantizers.items():
            if activation in keys:
                step = LearnedStep(
                    activation,
                    drop=settings.drop,
                    # a scale that units share is none's to move
                    learn_scale=settings.step_lr > 0
                    and keys[activation] in learnable
                    and tensor not in shared,
                    generator=generator,
                )
                self.steps[tensor] = step
                part.add_module(keys[activation], step)
        names = [name for name in bias_names(part) if name in learnable]
        self.biases = [part.get_parameter(name) for name in names] if settings.bias_lr > 0 else []

    def groups(self, settings: ReconstructionSettings, factor: float) -> list[dict[str, object]]:
        """Returns the optimizer's parameter groups; the first, the roundings', keeps its rate."""
        roundings = self.roundings.values()
        gains = [r.log_gain for r in roundings if r.log_gain.requires_grad]
        steps = [s.log_gain for s in self.steps.values() if s.log_gain.requires_grad]
        pairs = [
            ([r.logits for r in roundings], settings.rounding_lr),
            (gains, settings.scale_lr),
            (steps, settings.step_lr),
            (self.biases, settings.bias_lr),
        ]
        return [{"params": list(p), "lr": lr * factor} for p, lr in pairs if p]

    @contextmanager
    def biases_free(self) -> Iterator[None]:
        """Lets the biases take gradients, inside."""
        for bias in self.biases:
            bias.requires_grad_(True)
        try:
            yield
        finally:
            for bias in self.biases:
                bias.requires_grad_(False)
                bias.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Puts what was learned into the network: weights of just the integers decided on.

        Raises:
            CalibrationError: A scale that is not finite.
        """
        for point in self._network.placement.weights:
            rounding = self.roundings.get(point.initializer)
            if rounding is not None:
                self._write_weight(point, rounding)
        for tensor, step in self.steps.items():
            if step.log_gain.requires_grad:
                learned = dataclasses.replace(step.qparams, scale=step.scale.detach().cpu().numpy())
                self._network.activation_quantizers[tensor].set_qparams(learned)

    def _write_weight(self, point: WeightPoint, rounding: SoftRounding) -> None:
        weight = self._network.weight(point)
        quantizer = self._network.weight_quantizers[point.initializer]
        learned = dataclasses.replace(rounding.qparams, scale=rounding.scale.cpu().numpy())
        quantizer.set_qparams(learned, tuple(weight.shape))
        weight.copy_(rounding.integers() * quantizer.scale)


def learn(
    part: fx.GraphModule,
    stand_ins: StandIns,
    samples: Samples,
    settings: ReconstructionSettings,
    generators: tuple[torch.Generator, torch.Generator],
    *,
    batch_size: int,
    factor: float,
    tick: Callable[[], None],
) -> bool:
    """Takes the steps of one unit; returns whether the loss stayed finite.

    Args:
        part: The unit with its stand-ins.
        stand_ins: Its parameters.
        samples: What to learn from.
        settings: The schedule.
        generators: Of the images of a step, on the CPU, and of QDrop, on the device.
        batch_size: Images per step.
        factor: On all rates.
        tick: Called after each step.
    """
    groups = stand_ins.groups(settings, factor)
    parameters = [p for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    optimizer = torch.optim.Adam(groups)
    cosine = [1.0 if i == 0 and stand_ins.roundings else 0.0 for i in range(len(groups))]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, [_rate(settings.num_steps, lowest) for lowest in cosine]
    )
    for step in range(settings.num_steps):
        chosen = torch.randperm(len(samples.inputs), generator=generators[0])[:batch_size]
        loss = _loss(part, samples, settings, chosen.tolist(), generators[1])
        beta = annealed_beta(step, settings.num_steps, settings.warmup)
        if beta is not None and settings.decide > 0:
            for rounding in stand_ins.roundings.values():
                loss = loss + settings.decide * rounding.undecided(beta)
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        schedule.step()
        tick()
        last = step == settings.num_steps - 1
        if (last or step % CHECK_EVERY == CHECK_EVERY - 1) and not math.isfinite(
            float(loss.detach())
        ):
            return False
    return all(bool(torch.isfinite(p).all()) for p in parameters)


def _loss(
    part: fx.GraphModule,
    samples: Samples,
    settings: ReconstructionSettings,
    chosen: list[int],
    generator: torch.Generator,
) -> Tensor:
    """Returns the loss of one batch, without the pressure to decide."""
    x, y = samples.take(samples.inputs, chosen), samples.take(samples.targets, chosen)
    if settings.drop > 0:
        x = mixed(x, samples.take(samples.float_inputs, chosen), settings.drop, generator)
    enabled = settings.autocast and samples.device.type == "cuda"
    with torch.autocast(samples.device.type, dtype=torch.bfloat16, enabled=enabled):
        output = part(x).float()
        weights = robust_weights(y, samples.channel_axis, samples.energy)
        loss = reconstruction_loss(output, y, weights, samples.channel_axis)
        if samples.rest is not None:
            with torch.no_grad():
                wanted = log_softmax(samples.rest(y), dim=-1)
            found = log_softmax(samples.rest(output), dim=-1)
            divergence = kl_div(found, wanted, log_target=True, reduction="batchmean")
            loss = loss + settings.predict * divergence
    return loss


def _rate(num_steps: int, lowest: float) -> Callable[[int], float]:
    """Returns a cosine from 1 to ``lowest``; constant with ``lowest`` 1."""
    return lambda step: lowest + (1 - lowest) * (1 + math.cos(math.pi * step / num_steps)) / 2
