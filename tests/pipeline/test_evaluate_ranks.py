"""Ranks that share the test images count what one rank counts."""

from __future__ import annotations

import numpy as np
import pytest
from several_ranks import RANKS, joined_outcomes
from test_evaluate import image_set, table_predictor

from fdda_deploy.pipeline.evaluate import evaluate

pytestmark = RANKS


@pytest.mark.parametrize("batch_size", [3, 100], ids=["shares", "one batch for two ranks"])
def test_two_ranks_measure_what_one_does(tmp_path, batch_size):
    logits = np.random.default_rng(0).normal(size=(20, 9)).astype(np.float32)
    images = image_set(tmp_path, np.random.default_rng(1).integers(0, 9, 20))
    alone = evaluate(table_predictor(logits), images, batch_size)

    def work(ranks):
        asked = []

        def predict(batch):
            asked.append(len(batch))
            return table_predictor(logits)(batch)

        found = evaluate(predict, images, batch_size, ranks=ranks)
        return found.predictions, found.top1, found.top5, found.low, found.high, sum(asked)

    found = joined_outcomes(work)
    for predictions, *rest, _ in found:
        np.testing.assert_array_equal(predictions, alone.predictions)
        assert rest == [alone.top1, alone.top5, alone.low, alone.high]
    assert sum(rank[-1] for rank in found) == 20, "no image was asked for twice"
