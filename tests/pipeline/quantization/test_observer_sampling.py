"""Samples of a batch: deterministic, bounded, fair to every image, true to the distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fdda_deploy.errors import CalibrationError, ConfigError
from fdda_deploy.pipeline.quantization.observers import (
    SAMPLE_SIZE,
    HistogramObserver,
    MinMaxObserver,
    range_observer,
    sampled,
)
from fdda_deploy.pipeline.quantization.ranges import OBSERVERS


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 400), st.integers(6, 300))
def test_every_image_gives_as_many_and_they_stand_for_all(
    count: int, length: int, size: int
) -> None:
    image = torch.arange(count).repeat_interleave(length).reshape(count, length)
    found, weight = sampled(image, size, seeded())
    shares = torch.bincount(found, minlength=count)
    assert shares.min() == shares.max() > 0
    assert len(found) <= max(size, count)
    assert len(found) * weight == pytest.approx(count * length)


def test_each_run_of_an_image_gives_one_value() -> None:
    found, weight = sampled(torch.arange(6000).reshape(2, 3, 1000), 60, seeded())
    assert weight == 100
    assert (found // 100).tolist() == list(range(60))
    assert len(set((found % 100).tolist())) > 30  # not the same place in each


def test_batches_are_read_at_new_places_and_runs_are_repeatable() -> None:
    x, generator = torch.arange(40000).reshape(1, -1), seeded()
    first, second = sampled(x, 50, generator)[0], sampled(x, 50, generator)[0]
    assert not torch.equal(first, second)
    assert torch.equal(first, sampled(x, 50, seeded())[0])


def test_a_sampled_histogram_is_that_of_all_values_within_its_standard_error() -> None:
    x = torch.randn(4, 3, 300, 300, generator=seeded(1)).relu()
    x[1] *= 3  # one image unlike the others
    observer = HistogramObserver(256)
    observer.observe(x)
    found = observer.histogram()
    limit = float(x.max())
    wanted, _ = np.histogram(x.numpy(), bins=256, range=(-limit, limit))
    assert x.numel() > 4 * SAMPLE_SIZE
    assert found.counts.sum() == pytest.approx(x.numel())
    assert (found.low, found.high) == (0.0, limit)
    share, sample = wanted / x.numel(), found.counts / x.numel()
    error = np.sqrt(share * (1 - share) / SAMPLE_SIZE)
    assert (np.abs(sample - share) <= 5 * error + 5 / SAMPLE_SIZE).all()


def test_an_outlier_outside_the_sample_still_sets_the_range() -> None:
    x = torch.zeros(1, 2**20)
    x[0, 12345], x[0, 54321] = 9.0, -3.0
    histogram, exact = HistogramObserver(), MinMaxObserver()
    for observer in (histogram, exact):
        observer.observe(x)
    assert (histogram.histogram().low, histogram.histogram().high) == (-3.0, 9.0)
    assert float(exact.qparams(8).scale) == pytest.approx(9 / 127)


def test_minmax_is_exact_over_batches_and_needs_no_histogram() -> None:
    observer = range_observer("minmax", "Relu_output")
    assert isinstance(observer, MinMaxObserver)
    for batch in (torch.tensor([[1.0, -0.5]]), torch.tensor([[0.1, 2.54]])):
        observer.observe(batch)
    assert (observer.low, observer.high) == (-0.5, pytest.approx(2.54))
    assert float(observer.qparams(8).scale) == pytest.approx(0.02)


@pytest.mark.parametrize("method", OBSERVERS)
def test_every_observer_answers_by_its_own_method(method: str) -> None:
    x = torch.randn(2, 5000, generator=seeded(2))
    observer, histogram = range_observer(method, "x"), HistogramObserver()
    observer.observe(x)
    histogram.observe(x)
    wanted = OBSERVERS[method](histogram.histogram(), 4)
    assert observer.qparams(4) == wanted


@pytest.mark.parametrize("method", OBSERVERS)
def test_an_observer_that_saw_nothing_or_nonsense_names_its_tensor(method: str) -> None:
    observer = range_observer(method, "Relu_output")
    with pytest.raises(CalibrationError, match="Relu_output: no image reached this tensor"):
        observer.qparams(8)
    with pytest.raises(CalibrationError, match="Relu_output: NaN or infinite while ranges"):
        observer.observe(torch.tensor([0.0, float("nan")]))


def test_an_unknown_observer_is_refused_before_it_sees_anything() -> None:
    with pytest.raises(ConfigError, match="observer 'median': want one of mse, lp, minmax, perc"):
        range_observer("median", "x")
