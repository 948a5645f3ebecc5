"""Evaluation: counts that are right, intervals that keep their promise, and NaN that is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from fdda_deploy.errors import DataError, ModelError
from fdda_deploy.pipeline.data import open_images
from fdda_deploy.pipeline.evaluate import (
    Evaluation,
    agreement,
    evaluate,
    paired_drop,
    torch_predictor,
    wilson_interval,
)
from fdda_deploy.pipeline.preprocessing import Preprocessing

PIXELS = Preprocessing(4, 4, channels=1, mean=(0.0,), std=(1.0,))


def image_set(tmp_path, labels, num_images=None):
    """Images whose pixels all hold their own index."""
    count = len(labels) if labels is not None else num_images
    x = np.arange(count, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    arrays = {"x": x} if labels is None else {"x": x, "y": np.asarray(labels)}
    np.savez(tmp_path / "images.npz", **arrays)
    return open_images(str(tmp_path / "images.npz"), PIXELS)


def table_predictor(table):
    """Logits by image index, which is read off the image."""

    def predict(images):
        indices = np.rint(images[:, 0, 0, 0] * 255).astype(int)
        return np.asarray(table, dtype=np.float32)[indices]

    return predict


def outcome(right):
    """An evaluation in which image i is predicted rightly where ``right[i]``."""
    right = np.asarray(right, dtype=bool)
    labels = np.ones(len(right), np.int64)
    return Evaluation(right.astype(np.int64), labels, 100 * right.mean(), None, len(right), 0, 100)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_top1_and_top5_are_counted_over_every_batch_size(tmp_path, batch_size):
    logits = np.random.default_rng(0).normal(size=(20, 9)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 9, 20)
    result = evaluate(table_predictor(logits), image_set(tmp_path, labels), batch_size)
    order = np.argsort(-logits, axis=1)
    assert result.top1 == 100 * (order[:, 0] == labels).mean()
    assert result.top5 == 100 * (order[:, :5] == labels[:, None]).any(axis=1).mean()
    np.testing.assert_array_equal(result.predictions, order[:, 0])
    assert result.n == 20
    assert result.low < result.top1 < result.high


def test_a_network_without_an_opinion_gets_no_credit_from_ties(tmp_path):
    result = evaluate(table_predictor(np.zeros((8, 8))), image_set(tmp_path, np.arange(8)), 8)
    assert result.top1 == 12.5
    assert result.top5 == 62.5


def test_top5_is_absent_where_it_would_always_be_right(tmp_path):
    result = evaluate(table_predictor(np.eye(5)), image_set(tmp_path, np.arange(5)), 2)
    assert (result.top1, result.top5) == (100.0, None)


def test_progress_ends_at_the_number_of_images(tmp_path):
    calls = []
    images = image_set(tmp_path, np.arange(5))
    evaluate(
        table_predictor(np.eye(5)), images, 2, lambda done, total, _: calls.append((done, total))
    )
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_images_without_labels_cannot_be_evaluated_on(tmp_path):
    with pytest.raises(DataError, match=r"has no labels.*--eval-data"):
        evaluate(table_predictor(np.eye(3)), image_set(tmp_path, None, 3), 2)


def test_nan_logits_are_counted(tmp_path):
    logits = np.eye(6, dtype=np.float32)
    logits[[1, 4]] = np.nan
    with pytest.raises(ModelError, match=r"logits of 2 of images 0 to 5 are NaN"):
        evaluate(table_predictor(logits), image_set(tmp_path, np.arange(6)), 6)


def test_labels_beyond_the_logits_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"has label 7, but the network has 3 classes"):
        evaluate(table_predictor(np.zeros((4, 3))), image_set(tmp_path, [0, 7, 1, 2]), 4)


def test_outputs_that_are_no_logits_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"returned shape \(4, 3, 2\) for 4 images"):
        evaluate(table_predictor(np.zeros((4, 3, 2))), image_set(tmp_path, [0, 1, 1, 2]), 4)


def test_torch_predictor_runs_in_eval_mode_and_takes_the_first_output():
    class TwoOutputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.9)

        def forward(self, x):
            return self.drop(x.flatten(1)), x.sum()

    images = np.random.default_rng(0).normal(size=(3, 1, 2, 2)).astype(np.float32)
    logits = torch_predictor(TwoOutputs().train(), torch.device("cpu"))(images)
    np.testing.assert_array_equal(logits, images.reshape(3, 4))


def test_agreement_is_the_share_of_equal_predictions():
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 0])) == 50.0
    with pytest.raises(DataError, match="cannot be compared"):
        agreement(np.arange(3), np.arange(4))


@given(st.integers(1, 2000), st.data())
def test_wilson_interval_holds_the_share_and_mirrors(n, data):
    k = data.draw(st.integers(0, n))
    low, high = wilson_interval(k, n)
    assert 0 <= low <= 100 * k / n + 1e-9
    assert 100 * k / n - 1e-9 <= high <= 100
    mirrored = wilson_interval(n - k, n)
    assert mirrored == pytest.approx((100 - high, 100 - low), abs=1e-9)


def test_wilson_interval_is_the_inverted_score_test():
    # At each end, the observed share is 1.96 standard errors away, with that end's own error.
    n, k = 597, 590
    for end in wilson_interval(k, n):
        p = end / 100
        assert abs(k / n - p) / np.sqrt(p * (1 - p) / n) == pytest.approx(1.959964, rel=1e-5)


@given(st.integers(1, 5000))
def test_identical_networks_have_no_drop_and_an_interval_around_zero(n):
    drop = paired_drop(outcome(np.ones(n)), outcome(np.ones(n)))
    assert drop.mean == 0
    assert drop.low < 0 < drop.high
    assert drop.low == -drop.high


outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300)


@given(outcomes)
def test_paired_drop_is_antisymmetric_and_holds_its_mean(pairs):
    a, b = (outcome([pair[side] for pair in pairs]) for side in (0, 1))
    drop, reverse = paired_drop(a, b), paired_drop(b, a)
    assert drop.mean == pytest.approx(a.top1 - b.top1)
    assert -100 <= drop.low <= drop.mean + 1e-9
    assert drop.mean - 1e-9 <= drop.high <= 100
    got = (reverse.mean, reverse.low, reverse.high)
    assert got == pytest.approx((-drop.mean, -drop.high, -drop.low))


@given(outcomes)
def test_paired_interval_shrinks_with_more_of_the_same_images(pairs):
    widths = []
    for times in (1, 4):
        a, b = (outcome([pair[side] for pair in pairs] * times) for side in (0, 1))
        drop = paired_drop(a, b)
        assume(drop.low > -100)
        assume(drop.high < 100)
        widths.append(drop.high - drop.low)
    assert widths[1] < widths[0]


def test_paired_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    n, lost_rate, gained_rate, trials = 500, 0.012, 0.004, 4000  # few discordant pairs
    truth = 100 * (lost_rate - gained_rate)
    covered = 0
    for lost, gained, _ in rng.multinomial(
        n, [lost_rate, gained_rate, 1 - lost_rate - gained_rate], size=trials
    ):
        first, second = np.ones(n), np.ones(n)
        first[:gained], second[gained : gained + lost] = 0, 0
        drop = paired_drop(outcome(first), outcome(second))
        covered += drop.low <= truth <= drop.high
    assert 0.93 < covered / trials < 0.985


def test_different_images_cannot_be_paired():
    with pytest.raises(DataError, match=r"different images \(3 and 4\)"):
        paired_drop(outcome([1, 0, 1]), outcome([1, 0, 1, 1]))
