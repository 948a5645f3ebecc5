"""What is called a drop: exact on labels, and without them a bound that no drop exceeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fdda_deploy.pipeline.stages.assigning import TuneImages, drop_measurer

CPU = torch.device("cpu")
CLASSES = 4


class Answers(nn.Module):
    """Names the class that is written in the image, plus a fixed table of changes."""

    def __init__(self, changed: list[int]) -> None:
        super().__init__()
        self.changed = torch.tensor(changed)

    def forward(self, x: Tensor) -> Tensor:
        index = x[:, 0, 0, 0].long()
        return nn.functional.one_hot(self.changed[index], CLASSES).float()


def tune(count: int, labels: list[int] | None) -> TuneImages:
    images = torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1)
    return TuneImages("here", images, None if labels is None else np.array(labels))


def drop(before: list[int], after: list[int], labels: list[int] | None) -> float:
    measure = drop_measurer(tune(len(before), labels), Answers(before), CPU, batch_size=3)
    return measure(Answers(after))


def test_with_labels_it_is_the_difference_of_top1() -> None:
    assert drop([0, 1, 2, 3], [0, 1, 0, 0], [0, 1, 2, 0]) == 0
    assert drop([0, 1, 2, 3], [0, 0, 0, 3], [0, 1, 2, 3]) == 50
    assert drop([1, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]) == -25


def test_without_labels_every_answer_that_changes_counts() -> None:
    assert drop([0, 1, 2, 3], [0, 1, 2, 3], None) == 0
    assert drop([0, 1, 2, 3], [0, 2, 2, 0], None) == 50


@given(st.lists(st.tuples(*[st.integers(0, CLASSES - 1)] * 3), min_size=1, max_size=20))
def test_no_drop_exceeds_the_share_of_changed_answers(rows: list[tuple[int, int, int]]) -> None:
    before, after, labels = (list(column) for column in zip(*rows, strict=True))
    assert drop(before, after, labels) <= drop(before, after, None) + 1e-9


@pytest.mark.parametrize(
    ("labels", "metric"),
    [([0], "top-1 drop"), (None, "share of answers that change, at least the top-1 drop")],
)
def test_the_metric_is_named(labels: list[int] | None, metric: str) -> None:
    assert tune(1, labels).metric == metric
    assert len(tune(1, labels)) == 1
