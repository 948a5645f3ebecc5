from __future__ import annotations

import numpy as np
import pytest
import torch

from fdda_deploy.pipeline.synthesis.losses import (
    bns_alignment_loss,
    bns_centralized_loss,
    bns_distorted_loss,
    cross_entropy,
    distorted_targets,
    layer_weights,
)

SIZES = [2, 5, 3]


def by_hand(*rows: torch.Tensor) -> float:
    """The formula as the paper writes it: a loop over layers, two mean squared errors in each."""
    mean, variance, target_mean, target_var = (
        np.split(row.numpy().astype(np.float64), np.cumsum(SIZES)[:-1]) for row in rows
    )
    total = 0.0
    for layer in range(len(SIZES)):
        total += np.mean((mean[layer] - target_mean[layer]) ** 2)
        total += np.mean((variance[layer] - target_var[layer]) ** 2)
    return total / len(SIZES)


@pytest.mark.parametrize(
    "loss", [bns_alignment_loss, bns_centralized_loss, bns_distorted_loss], ids=lambda f: f.__name__
)
def test_statistics_losses_are_the_papers_mean_over_layers(loss: object) -> None:
    rows = [torch.randn(sum(SIZES)) for _ in range(4)]
    value = loss(*rows, layer_weights(SIZES))  # type: ignore[operator]  # one of three functions
    assert float(value) == pytest.approx(by_hand(*rows), rel=1e-5)
    assert float(loss(*rows[:2], *rows[:2], layer_weights(SIZES))) == 0.0  # type: ignore[operator]  # same


def test_cross_entropy_equals_numpy_for_half_precision_logits_too() -> None:
    logits, labels = torch.randn(4, 6).bfloat16(), torch.tensor([5, 0, 3, 3])
    values = logits.float().numpy().astype(np.float64)
    log_sum = np.log(np.exp(values).sum(1))
    expected = np.mean(log_sum - values[np.arange(4), labels.numpy()])
    assert float(cross_entropy(logits, labels)) == pytest.approx(expected, rel=1e-5)


def test_absolute_noise_is_added_as_published() -> None:
    mean, variance, normal = torch.randn(10), torch.rand(10), torch.randn(2, 10)
    targets = distorted_targets(
        mean, variance, normal, sigma_mean=0.5, sigma_variance=1.0, clamp_variance=False
    )
    torch.testing.assert_close(targets[0], mean + 0.5 * normal[0])
    torch.testing.assert_close(targets[1], variance + normal[1])
    assert bool((targets[1] < 0).any())


def test_relative_noise_is_in_units_of_the_running_statistics() -> None:
    mean, variance, normal = torch.randn(10), torch.rand(10), torch.randn(2, 10)
    unit = torch.rand(10) * 1e-3
    targets = distorted_targets(
        mean,
        variance,
        normal,
        sigma_mean=0.5,
        sigma_variance=2.0,
        clamp_variance=False,
        unit_var=unit,
    )
    torch.testing.assert_close(targets[0], mean + 0.5 * unit.sqrt() * normal[0])
    torch.testing.assert_close(targets[1], variance + 2.0 * unit * normal[1])


def test_clamping_moves_only_the_targets_that_no_image_can_reach() -> None:
    normal = torch.tensor([[0.0, 0.0], [-3.0, 1.0]])
    _, variance = distorted_targets(
        torch.zeros(2), torch.ones(2), normal, sigma_mean=1, sigma_variance=1, clamp_variance=True
    )
    assert variance.tolist() == [0.0, 2.0]
