"""Two ranks that share each batch take the student's steps that one rank takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from several_ranks import RANKS, import_what_tracing_takes, joined_outcomes
from test_finetune import SETTINGS, run, student, weights_of
from torch import Tensor

from fdda_deploy.pipeline.distributed import Ranks

pytestmark = RANKS


def half_labelled(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    images = torch.randn(count, 3, 8, 8, generator=generator)
    return images, torch.where(torch.arange(count) < count // 3, 1, -1)


@pytest.mark.parametrize("trainable", ["all", "scales-and-biases"])
def test_two_ranks_fine_tune_as_one_does(trainable: str) -> None:
    import_what_tracing_takes()
    settings = dataclasses.replace(SETTINGS, trainable=trainable, batch_size=7, augment="crop-flip")

    def work(ranks: Ranks) -> tuple[list[float], dict[str, Any], float]:
        network = student()
        if ranks.follows:  # as if it had come to other weights on its own device
            for value in network.parameters():
                value.data.mul_(1.5)
        result = run(network, settings, draws=[half_labelled], ranks=ranks)
        found = {name: value.numpy() for name, value in weights_of(network).items()}
        return result.history["student_loss"], found, result.after

    ((losses, weights, after),) = joined_outcomes(work, 1)
    for other_losses, other_weights, other_after in joined_outcomes(work):
        assert other_losses == pytest.approx(losses, rel=1e-4)
        assert other_after == pytest.approx(after, rel=1e-3)
        for name, value in weights.items():
            assert abs(other_weights[name] - value).max() < 1e-3 * abs(value).max(), name
