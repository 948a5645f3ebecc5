"""What the stages of one build share: the configuration, results so far, and objects made once.

A stage that is cached makes nothing. A stage that runs asks here for the network or the images, and
they are made then, once, whichever stage asks first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fdda_deploy.config import BuildConfig
from fdda_deploy.engines.doctor import BackendChoice
from fdda_deploy.errors import ConfigError, DataError
from fdda_deploy.exporters.float_onnx import FloatGraph, export_float
from fdda_deploy.pipeline.data import ImageSet, open_images, read_classes
from fdda_deploy.pipeline.distributed import ALONE, Ranks
from fdda_deploy.pipeline.models import FloatModel, load_float_model
from fdda_deploy.pipeline.network import StatisticsNetwork, statistics_network, trace
from fdda_deploy.pipeline.preprocessing import SMALL_IMAGE_PX, Preprocessing
from fdda_deploy.pipeline.progress import Progress
from fdda_deploy.pipeline.quantization.fold import fold_batch_norm
from fdda_deploy.pipeline.stages.recipe_choice import (
    RecipeChoice,
    Situation,
    choose_recipe,
    scheduled,
)
from fdda_deploy.pipeline.synthesis.recipes import Recipe, recipe_named
from fdda_deploy.pipeline.synthesis.statistics import biased_convolutions
from fdda_deploy.pipeline.workspace import Json, StageResult

Record = Mapping[str, Json]
DIGITS = "digits"
CHECKPOINT_EVERY_SECONDS = 20.0
"""Least time between two checkpoints of the generator: what a kill costs at most."""


@dataclass(frozen=True)
class Stage:
    """One stage of the road.

    Attributes:
        name: Also its command's name.
        inputs: Everything that decides its result, for the cache key.
        run: Writes files into the folder it is given; returns its record.
        published: Files that users find in the result folder, by name in the stage's folder.
        shared: Whether every rank of a distributed build runs it, for its share of the work; else
            the others wait for rank 0.
    """

    name: str
    inputs: Callable[[RunContext], dict[str, Json]]
    run: Callable[[RunContext, Path, Progress], Record]
    published: Mapping[str, str] = field(default_factory=dict)
    shared: Callable[[RunContext], bool] = lambda _context: False


@dataclass
class RunContext:
    """One build in progress; ``until`` is the stage it goes up to."""

    config: BuildConfig
    backend: BackendChoice
    target: str
    checkpoint_every_seconds: float = CHECKPOINT_EVERY_SECONDS
    until: str = "report"
    results: dict[str, StageResult] = field(default_factory=dict)
    ranks: Ranks = ALONE

    def record(self, stage: str) -> dict[str, Any]:
        """Returns the record of a stage that ran."""
        return self.results[stage].record

    def file(self, stage: str, name: str) -> Path:
        """Returns a file of a stage that ran."""
        return self.results[stage].folder / name

    def keys(self, *stages: str) -> dict[str, Json]:
        """Returns the cache keys of earlier stages: their results are this stage's inputs."""
        return {f"after {stage}": self.results[stage].key for stage in stages}

    @functools.cached_property
    def device(self) -> torch.device:
        """Where torch computes.

        Raises:
            ConfigError: CUDA was asked for, and torch sees none.
        """
        name = self.config.run.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"--device {name}: torch sees no GPU here. Take --device cpu.")
        return self.ranks.device(name)

    @functools.cached_property
    def model(self) -> FloatModel:
        """The float network as the user named it."""
        section = self.config.model
        return load_float_model(
            section.name,
            weights=section.weights,
            input_size=section.input_size,
            resize=section.resize,
            mean=section.mean,
            std=section.std,
            num_classes=section.num_classes,
        )

    @functools.cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The float network, traced."""
        return trace(self.model.module, self.model.preprocessing.shape)

    @functools.cached_property
    def statistics(self) -> StatisticsNetwork:
        """The float network with its BatchNorm inputs."""
        return statistics_network(self.program)

    @functools.cached_property
    def float_graph(self) -> FloatGraph:
        """The folded network as ONNX and torch graph."""
        return export_float(fold_batch_norm(self.program), self.model.preprocessing.shape)

    @functools.cached_property
    def preprocessing(self) -> Preprocessing:
        """How images reach the network, from the load stage's record."""
        plain = dict(self.record("load")["preprocessing"])
        plain["mean"], plain["std"] = tuple(plain["mean"]), tuple(plain["std"])
        return Preprocessing(**plain)

    @functools.cached_property
    def classes(self) -> tuple[str, ...] | None:
        """Class ids in logit order, from ``--classes``."""
        path = self.config.data.classes
        if path is None:
            return None
        classes = read_classes(Path(path))
        wanted = self.record("load")["classes"]
        if len(classes) != wanted:
            raise DataError(
                f"{path}: {len(classes)} classes, the network has {wanted}. Give the list the "
                "network was trained with."
            )
        return classes

    @functools.cached_property
    def class_names(self) -> tuple[str, ...] | None:
        """Names for pictures and reports: the model's own, else the class list's."""
        names = self.record("load")["class_names"]
        return tuple(names) if names else self.classes

    @functools.cached_property
    def calibration(self) -> ImageSet | None:
        """Real images to calibrate on; for ``digits`` one image of each class unless named."""
        section = self.config.data
        if section.calib_data is None:
            if self.config.model.name != DIGITS:
                return None
            return self._open("digits:train", section.calib_limit).first_per_class(1)
        return self._open(section.calib_data, section.calib_limit)

    @functools.cached_property
    def evaluation(self) -> ImageSet | None:
        """Labelled images to measure accuracy on; for ``digits`` its test split unless named."""
        section = self.config.data
        source = section.eval_data
        if source is None and self.config.model.name == DIGITS:
            source = "digits:test"
        return None if source is None else self._open(source, section.eval_limit)

    @functools.cached_property
    def tune(self) -> ImageSet | None:
        """Images that choose between assignments of widths, where ``--tune-data`` names any.

        Raises:
            ConfigError: They are the evaluation images.
        """
        source, judge = self.config.data.tune_data, self.evaluation
        if source is None:
            return None
        found = self._open(source, None)
        if judge is not None and _same_source(found, judge):
            raise ConfigError(
                f"--tune-data {source}: these images measure the result, so they must not choose "
                "it. Give others."
            )
        return found

    def _open(self, source: str, limit: int | None) -> ImageSet:
        return open_images(
            source,
            self.preprocessing,
            classes=self.classes,
            num_classes=self.record("load")["classes"],
            max_damaged=self.config.data.max_damaged,
            limit=limit,
            seed=self.config.run.seed,
        )

    @functools.cached_property
    def recipe(self) -> Recipe | None:
        """The synthesis recipe on its schedule; None when no image is to be made."""
        published = self.published_recipe
        if published is None:
            return None
        size = "small" if self.small_images else "large"
        return scheduled(published, self.config.synthesis, size=size, reduce=self._reduced_schedule)

    @property
    def small_images(self) -> bool:
        """Images of 64 px or less: schedules and sets can be longer."""
        return max(self.preprocessing.shape[1:]) <= SMALL_IMAGE_PX

    @functools.cached_property
    def published_recipe(self) -> Recipe | None:
        """The recipe on its published schedule."""
        name = self.recipe_choice.name
        if name == "none":
            return None
        return recipe_named(name, self.config.synthesis.overrides)

    @property
    def _reduced_schedule(self) -> bool:
        asked = self.config.synthesis.schedule
        return asked == "reduced" or (asked == "auto" and self.device.type == "cpu")

    @functools.cached_property
    def recipe_choice(self) -> RecipeChoice:
        """The recipe's name and why it was taken.

        Raises:
            DataError: There is neither BatchNorm nor a real image.
            ModelError: Images are to be synthesized from a network without BatchNorm.
            ConfigError: The recipe needs class centers and there is no labelled real image.
        """
        images = self.calibration
        situation = Situation(
            model=self.config.model.name,
            batchnorm_layers=self.record("load")["batchnorm_layers"],
            num_images=0 if images is None else images.num_named,
            labelled=images is not None and images.labelled,
            synthesized=images is not None and images.recipe is not None,
            biased_convolutions=lambda: biased_convolutions(self.statistics),
        )
        return choose_recipe(self.config.synthesis.recipe, situation)


def _same_source(one: ImageSet, other: ImageSet) -> bool:
    same_place = Path(one.origin).resolve() == Path(other.origin).resolve()
    return same_place or one.digest == other.digest
