"""The loss of a unit is the weighted squared distance, and no few positions own it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from quant_networks import CPU
from torch import Tensor, fx, nn

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.quantization.activation_store import ActivationStore
from fdda_deploy.pipeline.quantization.reconstruction_streams import fitting_batch, stored
from fdda_deploy.pipeline.quantization.reconstruction_training import (
    Samples,
    median_energy,
    reconstruction_loss,
    relative_error,
    robust_weights,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def store_of(x: Tensor) -> ActivationStore:
    return stored([x], 2**20)


@pytest.mark.parametrize(("axis", "shape"), [(1, (3, 4, 5, 6)), (-1, (3, 5, 4))])
def test_the_loss_is_the_weighted_mean_over_positions(axis: int, shape: tuple[int, ...]) -> None:
    y, output = normal(*shape), normal(*shape, seed=1)
    weights = robust_weights(y, axis, 2.0)
    found = float(reconstruction_loss(output, y, weights, axis))
    a, b = y.double().numpy(), output.double().numpy()
    w = 1 / (1 + (a**2).sum(axis) / 2)
    assert found == pytest.approx(float((w * ((a - b) ** 2).sum(axis)).sum() / w.sum()), rel=1e-5)


def test_a_massive_position_counts_no_more_than_any_other() -> None:
    y = normal(8, 4, 5, 5)
    y[0, :, 0, 0] *= 1000
    weights = robust_weights(y, 1, median_energy(store_of(y), 1))
    shares = (weights * y.square()).sum(dim=1)
    assert float(shares[0, 0, 0] / shares.sum()) < 3 / shares.numel()


def test_the_median_leaves_out_positions_without_activity() -> None:
    y = normal(4, 3, 5, 5).clamp_min(0)
    empty = torch.zeros(40, 3, 5, 5)
    energy = y.square().sum(1).flatten()
    assert median_energy(store_of(torch.cat([empty, y])), 1) == float(energy[energy > 0].median())
    assert median_energy(store_of(empty), 1) == 1.0


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_relative_error_does_not_depend_on_the_batch(batch_size: int) -> None:
    x, y = normal(10, 3, 4, 4), normal(10, 3, 4, 4, seed=1)
    samples = Samples(store_of(x), store_of(x), store_of(y), 1, 1.0, None, CPU)
    a, b = x.double().numpy(), y.double().numpy()
    w = 1 / (1 + (b**2).sum(1, keepdims=True))
    wanted = float((w * (a - b) ** 2).sum() / (w * b**2).sum())
    assert relative_error(nn.Identity(), samples, batch_size) == pytest.approx(wanted, rel=1e-5)


def test_a_target_of_zeros_has_no_error_or_an_infinite_one() -> None:
    zeros, x = store_of(torch.zeros(2, 3)), store_of(torch.ones(2, 3))
    assert relative_error(nn.Identity(), Samples(zeros, zeros, zeros, 1, 1, None, CPU), 2) == 0
    assert relative_error(nn.Identity(), Samples(x, x, zeros, 1, 1, None, CPU), 2) == math.inf


def linear() -> fx.GraphModule:
    return fx.symbolic_trace(_Linear())


class _Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000, 10))

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight)


def test_weights_count_once_whatever_the_batch() -> None:
    each, weights = (10 + 1000 + 1000) * 4, 40_000  # input, result, and the result handed out
    sizes = [
        fitting_batch(linear(), normal(1, 10), 64, weights + each * count, learn=False)
        for count in (1, 2, 7, 64, 1000)
    ]
    assert sizes == [1, 2, 4, 64, 64]


def test_learning_takes_several_times_the_memory() -> None:
    limit = 2**20
    learning = fitting_batch(linear(), normal(1, 10), 128, limit, learn=True)
    assert learning < fitting_batch(linear(), normal(1, 10), 128, limit, learn=False) / 2


def test_a_unit_that_does_not_fit_says_what_it_needs() -> None:
    with pytest.raises(CalibrationError, match=r"needs about 0\.0\d+ MiB for one image of a block"):
        fitting_batch(linear(), normal(1, 10), 4, 100, learn=False)


def test_streams_hold_an_image_per_batch() -> None:
    x = normal(5, 3, 4, 4).to(memory_format=torch.channels_last)
    store = stored(iter([x[:3], x[3:]]), 2**20)
    assert len(store) == store.num_samples == 5
    np.testing.assert_array_equal(torch.cat(list(store)).numpy(), x.numpy())
