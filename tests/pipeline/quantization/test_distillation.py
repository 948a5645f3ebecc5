"""Distillation losses equal their formulas, and the decoupled one its known limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fdda_deploy.pipeline.quantization.distillation import (
    decoupled_loss,
    decoupled_parts,
    distillation_loss,
    student_loss,
)

TARGET = torch.tensor([0, 4, 2, 1, 0, 3, 3])


def logits(seed: int, count: int = 7, classes: int = 5) -> Tensor:
    return 6 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_distillation_loss_equals_numpy(temperature: float) -> None:
    ours, theirs = logits(1).double().numpy(), logits(2).double().numpy()
    log_p, log_q = log_softmax(theirs / temperature), log_softmax(ours / temperature)
    wanted = (np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()
    found = distillation_loss(logits(1), logits(2), temperature)
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_distillation_loss_is_zero_for_twins_only_and_ignores_offsets() -> None:
    assert float(distillation_loss(logits(1), logits(1) + 3, 20.0)) == pytest.approx(0, abs=1e-6)
    assert float(distillation_loss(logits(1), logits(2), 20.0)) > 1e-3


def test_student_loss_is_the_papers_sum() -> None:
    ours, theirs, labels = logits(1), logits(2), torch.tensor([0, 4, 2, 1, 0, 3, 3])
    cross_entropy = -log_softmax(ours.double().numpy())[np.arange(7), labels.numpy()].mean()
    wanted = cross_entropy + 20 * 20**2 * float(distillation_loss(ours, theirs, 20.0))
    assert float(student_loss(ours, theirs, labels)) == pytest.approx(wanted, rel=1e-4)


def test_images_of_unknown_class_count_in_the_distillation_alone() -> None:
    ours, theirs = logits(1), logits(2)
    unknown = torch.full((7,), -1)
    distilled = 20 * 20**2 * float(distillation_loss(ours, theirs, 20.0))
    assert float(student_loss(ours, theirs, unknown)) == pytest.approx(distilled)
    some = torch.tensor([-1, 4, -1, -1, 0, -1, -1])
    cross_entropy = -log_softmax(ours.double().numpy())[[1, 4], [4, 0]].mean()
    assert float(student_loss(ours, theirs, some)) == pytest.approx(
        distilled + cross_entropy, rel=1e-4
    )


def test_the_decoupled_loss_equals_one_worked_by_hand() -> None:
    theirs = torch.tensor([[0.5, 0.3, 0.2]]).log()
    ours = torch.tensor([[0.25, 0.25, 0.5]]).log()
    target_part = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    other_part = 0.6 * math.log(0.6 / (1 / 3)) + 0.4 * math.log(0.4 / (2 / 3))
    tckd, nckd = decoupled_parts(ours, theirs, torch.tensor([0]), 1.0)
    assert float(tckd) == pytest.approx(target_part, rel=1e-5)
    assert float(nckd) == pytest.approx(other_part, rel=1e-5)
    found = decoupled_loss(ours, theirs, torch.tensor([0]), 1.0)
    assert float(found) == pytest.approx(target_part + 8 * other_part, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.sampled_from([1.0, 4.0, 20.0]))
def test_its_parts_add_up_to_plain_distillation(seed: int, classes: int, tau: float) -> None:
    ours, theirs = logits(seed, 7, classes), logits(seed + 1, 7, classes)
    target = torch.arange(7) % classes
    tckd, nckd = decoupled_parts(ours, theirs, target, tau)
    not_target = 1 - torch.softmax(theirs / tau, dim=1).gather(1, target[:, None])[:, 0]
    whole = float(distillation_loss(ours, theirs, tau))
    assert float((tckd + not_target * nckd).mean()) == pytest.approx(whole, rel=1e-3, abs=1e-6)
    assert float(tckd.min()) >= -1e-6
    assert float(nckd.min()) >= -1e-6


def test_with_two_classes_only_the_target_part_is_left() -> None:
    tckd, nckd = decoupled_parts(logits(1, 7, 2), logits(2, 7, 2), TARGET % 2, 2.0)
    assert nckd.abs().max() == 0
    whole = distillation_loss(logits(1, 7, 2), logits(2, 7, 2), 2.0)
    assert float(tckd.mean()) == pytest.approx(float(whole), rel=1e-5)


def test_twins_have_no_decoupled_loss_and_a_sure_teacher_has_a_finite_one() -> None:
    assert float(decoupled_loss(logits(1), logits(1), TARGET, 4.0)) == pytest.approx(0, abs=1e-6)
    sure = torch.full((7, 5), -200.0).scatter_(1, TARGET[:, None], 200.0)
    ours = logits(1).requires_grad_(True)
    loss = decoupled_loss(ours, sure, TARGET, 1.0)
    (gradient,) = torch.autograd.grad(loss, ours)
    assert math.isfinite(float(loss.detach()))
    assert torch.isfinite(gradient).all()


def test_the_decoupled_student_takes_the_teachers_class_where_none_is_known() -> None:
    ours, theirs = logits(1), logits(2)
    some = torch.tensor([-1, 4, -1, -1, 0, -1, -1])
    target = torch.where(some >= 0, some, theirs.argmax(dim=1))
    cross_entropy = -log_softmax(ours.double().numpy())[[1, 4], [4, 0]].mean()
    wanted = 16 * float(decoupled_loss(ours, theirs, target, 4.0)) + cross_entropy
    found = student_loss(ours, theirs, some, loss="dkd", temperature=4.0)
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_cross_entropy_counts_images_of_which_the_teacher_is_sure_and_0_for_the_others() -> None:
    ours, theirs = logits(1).double(), logits(2).double()
    sure = np.exp(log_softmax(theirs.numpy()))[np.arange(7), TARGET.numpy()]
    each = -log_softmax(ours.numpy())[np.arange(7), TARGET.numpy()]
    easy = float(np.median(sure))
    assert 0 < (sure >= easy).sum() < 7
    distilled = 20 * 20**2 * float(distillation_loss(ours, theirs, 20.0))
    found = float(student_loss(ours, theirs, TARGET, easy=easy)) - distilled
    assert found == pytest.approx((each * (sure >= easy)).mean(), rel=1e-3)
    assert float(student_loss(ours, theirs, TARGET, easy=1.0)) == pytest.approx(distilled, rel=1e-6)


def test_difficult_images_leave_parts_of_a_batch_adding_up() -> None:
    ours, theirs = logits(1), logits(2)
    whole = float(student_loss(ours, theirs, TARGET, easy=0.3))
    parts = [(slice(0, 3), 3 / 7), (slice(3, 7), 4 / 7)]
    added = sum(
        float(student_loss(ours[at], theirs[at], TARGET[at], easy=0.3, parts=(share, share)))
        for at, share in parts
    )
    assert added == pytest.approx(whole, rel=1e-5)
