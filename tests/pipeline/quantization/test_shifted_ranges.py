"""8-bit grids with a zero-point of their own: as fine as the values allow, for every observer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fdda_deploy.pipeline.quantization.observers import HistogramObserver, range_observer
from fdda_deploy.pipeline.quantization.ranges import OBSERVERS, covering_qparams
from fdda_deploy.quant.affine import fake_quant

each_observer = pytest.mark.parametrize("observer", OBSERVERS)
ends = st.floats(0, 1e4, width=32)


@given(down=ends, up=ends)
def test_covering_grid_covers_both_ends_and_wastes_less_than_two_steps(
    down: float, up: float
) -> None:
    grid = covering_qparams(-down, up, 8, shifted=True)
    assert (grid.qmin, grid.qmax) == (-128, 127)
    if down + up < 1e-30:
        return
    slack = 1 + 1e-5
    assert float(grid.low) * slack <= -down
    assert float(grid.high) * slack >= up
    assert float(grid.scale) <= (down + up) / 253 * slack


@given(down=ends, up=ends)
def test_symmetric_grids_keep_the_zero_point_zero(down: float, up: float) -> None:
    assert covering_qparams(-down, up, 8).zero_point == 0


@each_observer
@pytest.mark.parametrize(
    ("values", "zero_point"),
    [(torch.linspace(0, 3, 4000), -128), (torch.linspace(-3, 0, 4000), 127)],
    ids=["behind a relu", "below zero"],
)
def test_one_sided_tensors_use_every_level_on_their_side(
    observer: str, values: torch.Tensor, zero_point: int
) -> None:
    found = range_observer(observer, "x", shifted=True)
    found.observe(values)
    assert found.qparams(8).zero_point == zero_point


@each_observer
def test_a_free_zero_point_never_rounds_worse_than_none(observer: str) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(20000, generator=generator).exp() - 0.3
    errors = []
    for shifted in (False, True):
        found = range_observer(observer, "x", shifted)
        found.observe(x)
        grid = found.qparams(8)
        errors.append(float(np.square(fake_quant(x.numpy(), grid) - x.numpy()).mean()))
    assert errors[1] < errors[0]


@each_observer
def test_narrow_grids_are_the_same_with_and_without(observer: str) -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    grids = []
    for shifted in (False, True):
        found = HistogramObserver(512, "x", observer, shifted)
        found.observe(x)
        grids.append(found.qparams(4))
    assert grids[0] == grids[1]
    assert grids[0].zero_point == 0
