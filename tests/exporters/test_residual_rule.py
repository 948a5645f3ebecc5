"""T020 asks for an INT8 skip only where the product can fuse into the addition."""

from __future__ import annotations

import pytest
from repair_graphs import Foreign, left
from trt_rules_graphs import INT8


@pytest.mark.parametrize("read_elsewhere", [False, True], ids=["by the addition alone", "twice"])
def test_a_product_that_others_read_too_cannot_fuse(read_elsewhere: bool) -> None:
    """As the downsampling convolutions of ConvNeXt, which the depthwise layer reads too."""
    g = Foreign()
    product = g.conv(g.pair("x", dtype=INT8), g.weights(16, 16, 3, 3))
    other = g.conv(product if read_elsewhere else "x", g.floats(16, 1, 3, 3), group=16)
    model = g.model(g.add("Add", other, product))
    assert bool(left(model, "T020")) is not read_elsewhere
