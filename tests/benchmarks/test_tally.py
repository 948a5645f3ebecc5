"""benchmarks/tally.py: a row that is measured again."""

from __future__ import annotations

import tally

KEY = ("network", "tool")


def row(network, tool, figure):
    return {"network": network, "tool": tool, "figure": figure}


def test_a_row_measured_again_takes_the_place_of_the_old_one():
    rows = [row("n", "a", 1), row("n", "b", 1)]
    assert tally.merged(rows, row("n", "a", 2), KEY) == [row("n", "a", 2), row("n", "b", 1)]
    assert tally.merged(rows, row("m", "a", 2), KEY) == [*rows, row("m", "a", 2)]
