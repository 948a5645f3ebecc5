"""Networks that synthesis is timed on, each with centers of a few real images of its classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fdda_deploy.pipeline.data import open_images, read_classes
from fdda_deploy.pipeline.models import load_float_model
from fdda_deploy.pipeline.network import StatisticsNetwork, statistics_network, trace
from fdda_deploy.pipeline.preprocessing import pixel_bounds
from fdda_deploy.pipeline.synthesis.centers import ClassCenters, class_centers
from fdda_deploy.pipeline.synthesis.synthesizer import Bounds

SHARED = Path(__file__).parents[2] / "shared" / "data"
NETWORKS = ["digits", "cifar_resnet20", "mobilenet_v2"]
"""`digits` needs nothing but this checkout; the others the data folder beside it."""
NUM_REAL = 10
"""Images behind the centers: one per class of CIFAR-10, ten of ImageNet's thousand classes."""


@dataclass(frozen=True)
class TimedNetwork:
    """A float network and what a recipe may ask of it.

    Attributes:
        name: One of `NETWORKS`.
        statistics: The traced network.
        shape: (channels, height, width) of its images.
        num_classes: Its logits.
        centers: Of the classes of `NUM_REAL` real images.
        bounds: Of learned pixels.
    """

    name: str
    statistics: StatisticsNetwork
    shape: tuple[int, int, int]
    num_classes: int
    centers: ClassCenters
    bounds: Bounds

    @property
    def size(self) -> str:
        """``small`` up to 64 px, else ``large``: what CPU schedules go by."""
        return "small" if max(self.shape[1:]) <= 64 else "large"


def load(name: str, device: torch.device) -> TimedNetwork:
    """Returns one of `NETWORKS`, its centers measured on ``device``."""
    weights = None if name == "digits" else str(SHARED / f"weights/{name}.pth")
    small = name == "cifar_resnet20"
    model = load_float_model(
        f"{SHARED / 'networks.py'}:{name}" if small else name,
        weights=weights,
        input_size=(32, 32) if small else None,
    )
    source = {
        "digits": "digits:train",
        "cifar_resnet20": f"{SHARED / 'cifar10.npz'}#train",
        "mobilenet_v2": str(SHARED / "images/imagenet_calib.tar"),
    }[name]
    large = name == "mobilenet_v2"
    images = open_images(
        source,
        model.preprocessing,
        classes=read_classes(SHARED / "images/wnids.txt") if large else None,
        num_classes=model.num_classes,
        limit=NUM_REAL if large else None,
        seed=0,
    )
    chosen = images if large else images.first_per_class(1)
    statistics = statistics_network(trace(model.module, model.preprocessing.shape))
    batches = [chosen.load(np.arange(len(chosen)))]
    centers = class_centers(statistics, batches, model.num_classes, device=device)
    return TimedNetwork(
        name,
        statistics,
        model.preprocessing.shape,
        model.num_classes,
        centers,
        pixel_bounds(model.preprocessing),
    )
