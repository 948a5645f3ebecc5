"""Assign: the cheapest widths per layer that hold ``--max-drop`` on images that do not evaluate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fdda_deploy.errors import CalibrationError, DataError
from fdda_deploy.pipeline.data import ImageSet
from fdda_deploy.pipeline.evaluate import agreement, torch_predictor
from fdda_deploy.pipeline.progress import Progress, ignore_progress
from fdda_deploy.pipeline.quantization.mixed_precision import (
    FLOAT_BITS,
    MOST_MEASUREMENTS,
    WIDE_BITS,
    Assignment,
    Search,
    cheapest_holding,
    frontier,
    layer_candidates,
)
from fdda_deploy.pipeline.quantization.sensitivity import LayerSensitivity, bytes_of
from fdda_deploy.pipeline.report.mixed import widths_in_words
from fdda_deploy.pipeline.report.phrases import counted, size
from fdda_deploy.pipeline.stages.context import Record, RunContext, Stage
from fdda_deploy.pipeline.stages.images import Pool
from fdda_deploy.pipeline.stages.sensing import layers_in, measuring
from fdda_deploy.pipeline.workspace import Json


@dataclass(frozen=True)
class TuneImages:
    """The images that choose.

    Attributes:
        origin: Where they are from, in words.
        images: Of ``--tune-data``, or ``(n, C, H, W)`` float32 that no fine-tuning step takes.
        labels: ``(n,)`` int64; None where there are none.
    """

    origin: str
    images: ImageSet | Tensor
    labels: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def metric(self) -> str:
        """What is called a drop, in words."""
        if self.labels is None:
            return "share of answers that change, at least the top-1 drop"
        return "top-1 drop"

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yields the images, ``(N, C, H, W)`` float32."""
        if isinstance(self.images, Tensor):
            yield from torch.split(self.images, batch_size)
        else:
            for images, _ in self.images.batches(batch_size):
                yield images


def tune_images(context: RunContext, pool: Pool) -> TuneImages:
    """Returns the images that choose: ``--tune-data``, else those held out of fine-tuning.

    Raises:
        DataError: ``--tune-data`` has labels beyond the network's classes, or no image.
    """
    named = context.tune
    if named is None:
        origin = "held out of fine-tuning" if pool.holds_out else "calibration images"
        return TuneImages(origin, pool.held_out(), None)
    if not len(named):
        raise DataError(f"{named.origin}: no image to choose widths on. Give more --tune-data.")
    return TuneImages(named.origin, named, named.labels)


def drop_measurer(
    tune: TuneImages, float_module: nn.Module, device: torch.device, batch_size: int
) -> Callable[[nn.Module], float]:
    """Returns the function from a quantized network to its drop in percent points.

    With labels that is the float network's top-1 minus the other's. Without, it is 100 minus the
    percent of images on which both name the same class, which no top-1 drop exceeds.
    """

    def answers(module: nn.Module) -> NDArray[np.int64]:
        predict = torch_predictor(module, device)
        found = [predict(batch.numpy()).argmax(axis=1) for batch in tune.batches(batch_size)]
        return np.concatenate(found).astype(np.int64)

    before = answers(float_module)
    reference = before if tune.labels is None else tune.labels
    best = agreement(before, reference)
    return lambda module: round(best - agreement(answers(module), reference), 9)


def _inputs(context: RunContext) -> dict[str, Json]:
    max_drop = context.config.quantize.max_drop
    if max_drop is None:
        return {"max_drop": None}
    return {
        **context.keys("sensitivity"),
        "max_drop": max_drop,
        "tune": None if context.tune is None else context.tune.digest,
        "batch_size": context.config.run.batch_size,
    }


def _run(context: RunContext, _folder: Path, progress: Progress) -> Record:
    max_drop = context.config.quantize.max_drop
    if max_drop is None:
        return {"assignment": None}
    sensitivity = context.record("sensitivity")
    narrow, wide = layers_in(sensitivity, "narrow"), layers_in(sensitivity, "wide")
    rest: int = sensitivity["rest_bytes"]
    networks = measuring(context)
    tune = tune_images(context, networks.pool)
    module = context.float_graph.module
    drop_of = drop_measurer(tune, module, context.device, context.config.run.batch_size)
    done = 0

    def measure(assignment: Assignment) -> float:
        nonlocal done
        progress(done, MOST_MEASUREMENTS, "choosing widths")
        done += 1
        return drop_of(networks.network(assignment.widths, ignore_progress))

    path = frontier(layer_candidates(narrow, wide))
    search = cheapest_holding(path, measure, max_drop)
    if not search.holds:
        raise CalibrationError(_cannot_be_met(search, max_drop, tune, narrow, rest))
    return _record(search, max_drop, tune, narrow, rest)


def _cannot_be_met(
    search: Search, max_drop: float, tune: TuneImages, narrow: list[LayerSensitivity], rest: int
) -> str:
    """Returns the line that says what the best found loses, why, and what to do."""
    best, one_image, n = search.chosen, 100 / len(tune), counted(len(tune), "image")
    widths = widths_in_words(_layers_at(best.assignment, narrow))
    enough = math.ceil(100 * best.drop) / 100
    why = "the layers that stay quantized lose more than that"
    if one_image > max_drop:
        why = f"one image is {one_image:.2g} points there, so no answer may change"
    return (
        f"--max-drop {max_drop:g}: no widths hold it on {n} ({tune.origin}; {tune.metric}): {why}. "
        f"The best found loses {best.drop:.2f} points with "
        f"{size(best.assignment.num_bytes + rest)} of weights ({widths}). Give --max-drop "
        f"{enough:g} or more, other --tune-data, or a wider --scheme."
    )


def _record(
    search: Search, max_drop: float, tune: TuneImages, narrow: list[LayerSensitivity], rest: int
) -> dict[str, Json]:
    widths = search.chosen.assignment.widths
    return {
        "assignment": dict(widths),
        "max_drop": max_drop,
        "drop": search.chosen.drop,
        "metric": tune.metric,
        "tune": {"origin": tune.origin, "n": len(tune), "labelled": tune.labels is not None},
        "float_bytes": rest + sum(bytes_of(layer.num_weights, FLOAT_BITS) for layer in narrow),
        "points": [
            {
                "grid_bytes": each.assignment.num_bytes + rest,
                "stored_bytes": _stored_bytes(each.assignment, narrow) + rest,
                "drop": each.drop,
                "layers_at": _layers_at(each.assignment, narrow),
                "chosen": each is search.chosen,
            }
            for each in search.measured
        ],
        "raised": [
            {
                "name": layer.name,
                "from_bits": layer.weight_bits,
                "to_bits": widths[layer.name],
                "kl": layer.kl,
                "sqnr_db": layer.sqnr_db,
            }
            for layer in narrow
            if widths[layer.name] != layer.weight_bits
        ],
        "num_layers": len(narrow),
    }


def _stored_bytes(assignment: Assignment, layers: list[LayerSensitivity]) -> int:
    """Returns the bytes that the plan holds: one a weight below 8 bits, unless stored as INT4."""
    total = 0
    for layer in layers:
        bits = assignment.widths[layer.name]
        as_measured = bits == layer.weight_bits
        full = bytes_of(layer.num_weights, FLOAT_BITS if bits is None else WIDE_BITS)
        total += layer.stored_bytes if as_measured else full
    return total


def _layers_at(assignment: Assignment, layers: list[LayerSensitivity]) -> dict[str, int]:
    """Returns how many layers have each width, narrowest first: ``{"4": 10, "float": 1}``."""
    bits = [assignment.widths[layer.name] for layer in layers]
    order = sorted({each for each in bits if each is not None})
    found = {str(each): bits.count(each) for each in order}
    return found | ({"float": bits.count(None)} if None in bits else {})


ASSIGN = Stage("assign", _inputs, _run)
