"""benchmarks/peers_verdict.py: what is compared with what, and who is ahead."""

from __future__ import annotations

import numpy as np
import peers_verdict as verdicts
import pytest
from peer_rows import IMAGES, row
from peers_measure import packed
from peers_tools import MODELOPT, ORT, OURS


def right(wrong: int) -> str:
    return packed(np.arange(IMAGES) >= wrong)


def judged(column: verdicts.Column, ours: float | None, theirs: float | None) -> str:
    field = {verdicts.KL: "kl_nats", verdicts.PEAK: "peak_mib"}[column]
    return verdicts.verdict(
        column, row(OURS, "trt", **{field: ours}), row(ORT, "minmax", **{field: theirs})
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (1.0, 2.0, "win"),
        (2.0, 1.0, "loss"),
        (1.0, 1.04, "tie"),
        (1.04, 1.0, "tie"),
        (1.06, 1.0, "loss"),
        (0.0, 0.0, "tie"),
        (None, 1.0, "not measured"),
        (1.0, None, "not measured"),
    ],
)
def test_less_is_better_and_five_percent_is_a_tie(ours, theirs, said):
    assert judged(verdicts.KL, ours, theirs) == said


def test_a_drop_ties_where_the_paired_interval_has_zero_in_it():
    ours, near, far = (row(OURS, "trt", right=right(wrong)) for wrong in (0, 2, 20))
    assert verdicts.verdict(verdicts.DROP, ours, near) == "tie"
    assert verdicts.verdict(verdicts.DROP, ours, far) == "win"
    assert verdicts.verdict(verdicts.DROP, far, ours) == "loss"


def test_a_refused_file_has_a_larger_plan_than_any_other():
    taken = row(OURS, "rtx", plan_bytes=10**9)
    refused = row(ORT, "minmax", rtx_accepts=False, plan_bytes=None)
    for column in (verdicts.PLAN, verdicts.REFUSAL):
        assert verdicts.verdict(column, taken, refused) == "win"
        assert verdicts.verdict(column, refused, taken) == "loss"
        assert verdicts.verdict(column, refused, refused) == "tie"
    assert verdicts.PLAN.shown(refused) == "refused"
    assert verdicts.REFUSAL.shown(refused) == "no"
    assert verdicts.REFUSAL.shown(taken) == "yes"


def test_of_a_peer_the_best_row_of_each_column_counts():
    rows = [
        row(ORT, "minmax", kl_nats=0.02, peak_mib=100.0),
        row(ORT, "entropy", kl_nats=0.01, peak_mib=900.0),
        row(ORT, "other", kl_nats=0.001, scheme="w4a8"),
        row(MODELOPT, "max", kl_nats=0.0001),
    ]
    assert verdicts.best(rows, "n", ORT, verdicts.KL) is rows[1]
    assert verdicts.best(rows, "n", ORT, verdicts.PEAK) is rows[0]
    assert verdicts.best(rows, "elsewhere", ORT, verdicts.KL) is None


def test_a_row_that_was_stopped_does_not_count():
    rows = [row(ORT, "minmax", peak_mib=100.0), row(ORT, "entropy", peak_mib=1.0, failed="stopped")]
    assert verdicts.best(rows, "n", ORT, verdicts.PEAK) is rows[0]


def test_of_ours_the_row_for_the_purpose_counts_even_if_another_is_better():
    rows = [
        row(OURS, "trt", kl_nats=0.03),
        row(OURS, "rtx", kl_nats=0.001),
        row(OURS, "ort-cpu", kl_nats=0.02),
    ]
    trt, rtx, cpu = rows
    assert verdicts.ours_in(rows, "n", verdicts.KL, MODELOPT) is trt
    assert verdicts.ours_in(rows, "n", verdicts.KL, ORT) is cpu
    assert verdicts.ours_in(rows, "n", verdicts.PLAN, ORT) is rtx
    assert verdicts.ours_in(rows, "n", verdicts.LATENCY, MODELOPT) is cpu
    assert verdicts.ours_in(rows[1:2], "n", verdicts.KL, MODELOPT) is None
