"""Weighted means and covariances equal NumPy's, and a massive sample does not own them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fdda_deploy.pipeline.quantization.moments import MASSIVE, LayerMoments, Moments


def samples(seed: int, *size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def moments_of(*batches: tuple[Tensor, Tensor]) -> LayerMoments:
    moments = Moments()
    for x, x_hat in batches:
        moments.add(x, x_hat)
    return moments.result()


@pytest.mark.parametrize("offset", [0.0, 300.0], ids=["around 0", "far from 0"])
def test_moments_equal_numpys(offset: float) -> None:
    x = samples(0, 3, 400, 5) + offset
    x_hat = x + 0.1 * samples(1, 3, 400, 5)
    found = moments_of((x[:, :150], x_hat[:, :150]), (x[:, 150:], x_hat[:, 150:]))
    for group in range(3):
        a, b = x[group].double().numpy(), x_hat[group].double().numpy()
        energy = (a**2).sum(axis=1)
        weight = 1 / (1 + energy / (MASSIVE * np.median(energy[:149])))
        mean = np.average(a, axis=0, weights=weight)
        mean_hat = np.average(b, axis=0, weights=weight)
        share = (weight / weight.sum())[:, None]
        cov = (share * (b - mean_hat)).T @ (b - mean_hat)
        cross = (share * (a - mean)).T @ (b - mean_hat)
        assert np.allclose(found.mean_x[group], mean, rtol=1e-5, atol=2e-3)
        assert np.allclose(found.mean_xhat[group], mean_hat, rtol=1e-5, atol=2e-3)
        assert np.allclose(found.cov_xhat[group], cov, atol=2e-3)
        assert np.allclose(found.cov_x_xhat[group], cross, atol=2e-3)


def test_results_are_float64_and_symmetric() -> None:
    x = samples(0, 2, 50, 4)
    found = moments_of((x, x))
    assert found.cov_xhat.dtype == found.mean_x.dtype == torch.float64
    assert torch.allclose(found.cov_xhat, found.cov_xhat.mT, atol=1e-6)
    assert torch.allclose(found.cov_xhat, found.cov_x_xhat, atol=1e-6)


def test_a_massive_sample_counts_about_as_much_as_any_other() -> None:
    x = samples(0, 1, 500, 4)
    massive = x.clone()
    massive[0, 7] = 1e4
    clean, found = moments_of((x, x)), moments_of((massive, massive))
    assert massive[0].mean(dim=0).min() > 15
    assert found.mean_x.abs().max() < 0.2
    assert found.cov_xhat.diagonal(dim1=1, dim2=2).max() < 20
    assert clean.cov_xhat.diagonal(dim1=1, dim2=2).max() < 2


def test_inputs_that_are_mostly_cut_off_still_count() -> None:
    x = samples(0, 1, 400, 3)
    x[:, :300] = 0
    found = moments_of((x, x))
    assert found.cov_xhat.diagonal(dim1=1, dim2=2).min() > 0.05


def test_dead_inputs_have_no_variance() -> None:
    dead = torch.zeros(2, 30, 3)
    found = moments_of((dead, dead), (dead, dead + 0.0))
    assert found.cov_xhat.abs().max() == 0
    assert found.mean_x.abs().max() == 0
    constant = torch.full((1, 30, 3), 5.0)
    found = moments_of((constant, constant))
    assert found.mean_xhat.tolist() == [[5, 5, 5]]
    assert found.cov_xhat.abs().max() == 0
