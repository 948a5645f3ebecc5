"""What the student is told: the teacher's distribution, whole or in two parts, and the labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor

DKD_ALPHA = 1.0
DKD_BETA = 8.0
"""Weights of the target-class and the other-class part (Zhao et al., CVPR 2022)."""
LOSSES = ("fdda", "dkd")


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns ``KL(softmax(teacher / tau) || softmax(student / tau))`` in nats, mean over images.

    Args:
        student: Logits ``(N, classes)``.
        teacher: Logits ``(N, classes)``.
        temperature: ``tau``.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def decoupled_parts(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Returns both parts of the decoupled divergence, each ``(N,)`` in nats.

    With p_t the target's probability: ``TCKD = KL([p_t, 1 - p_t]_T || [p_t, 1 - p_t]_S)`` and
    ``NCKD = KL(p_T without t, renormalised || the same of S)``. By the chain rule
    ``KL(p_T || p_S) = TCKD + (1 - p_t of T) NCKD`` (Zhao et al., CVPR 2022, eq. 5).

    Args:
        student: Logits ``(N, classes)``, two classes or more.
        teacher: Logits ``(N, classes)``.
        target: Class ``(N,)`` int64.
        temperature: Of both softmaxes.
    """
    others = torch.ones_like(student, dtype=torch.bool).scatter_(1, target[:, None], value=False)
    binary, rest = [], []
    for logits in (student / temperature, teacher / temperature):
        log_p = F.log_softmax(logits, dim=1)
        log_rest = log_p[others].reshape(len(log_p), -1)
        log_not = torch.logsumexp(log_rest, dim=1, keepdim=True)
        binary.append(torch.cat([log_p.gather(1, target[:, None]), log_not], dim=1))
        rest.append(log_rest - log_not)
    tckd, nckd = (
        (of_teacher.exp() * (of_teacher - of_student)).sum(dim=1)
        for of_student, of_teacher in (binary, rest)
    )
    return tckd, nckd


def decoupled_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    temperature: float,
    alpha: float = DKD_ALPHA,
    beta: float = DKD_BETA,
) -> Tensor:
    """Returns ``alpha TCKD + beta NCKD`` (`decoupled_parts`) in nats, mean over images.

    Plain distillation weighs NCKD by 1 - p_t, which silences what a sure teacher knows of the other
    classes; here its weight is beta whatever p_t is.
    """
    tckd, nckd = decoupled_parts(student, teacher, target, temperature)
    return (alpha * tckd + beta * nckd).mean()


def student_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    loss: str = "fdda",
    alpha: float = 20.0,
    temperature: float = 20.0,
    parts: tuple[float, float] = (1.0, 1.0),
    easy: float = 0.0,
) -> Tensor:
    """Returns ``CE + alpha tau^2 KL`` (FDDA, arXiv 2109.04186) or ``CE + tau^2 DKD``.

    Unlabelled images (-1) count in the distillation term alone; the target class of theirs is the
    teacher's.

    Args:
        student: Logits ``(N, classes)``.
        teacher: Logits ``(N, classes)``.
        labels: ``(N,)`` int64, -1 for unknown.
        loss: One of `LOSSES`.
        alpha: Weight of FDDA's distillation term; ``dkd`` brings its own two.
        temperature: ``tau``.
        parts: What the distillation term and CE are multiplied by: where these images are a share
            of a batch, its parts of the batch and of the labelled images in it.
        easy: CE counts only images to whose label the teacher gives at least this probability, and
            0 for the others: of a difficult image the hard label may well be wrong (SynQ, ICLR
            2025; the measure of difficulty and that the mean is over all are our reading).
    """
    known = labels >= 0
    if loss == "dkd":
        target = torch.where(known, labels, teacher.argmax(dim=1))
        total = temperature**2 * decoupled_loss(student, teacher, target, temperature)
    else:
        total = alpha * temperature**2 * distillation_loss(student, teacher, temperature)
    total = total * parts[0]
    if known.any():
        cross = _cross_entropy(student[known], teacher[known], labels[known], easy)
        total = total + cross * parts[1]
    return total


def _cross_entropy(student: Tensor, teacher: Tensor, labels: Tensor, easy: float) -> Tensor:
    if not easy:
        return F.cross_entropy(student, labels)
    sure = F.softmax(teacher, dim=1).gather(1, labels[:, None])[:, 0]
    return (F.cross_entropy(student, labels, reduction="none") * (sure >= easy)).mean()
