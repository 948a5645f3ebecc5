"""Coverage counts products by what their operands come from."""

from __future__ import annotations

import pytest
from export_grids import grids_of, placed
from export_networks import Depthwise, Residual, graph_of

from fdda_deploy.exporters.coverage import Coverage, qdq_coverage
from fdda_deploy.exporters.qdq import insert_qdq


@pytest.mark.parametrize("kind", [Residual, Depthwise], ids=lambda kind: kind.__name__)
def test_products_are_counted_by_their_operands(kind: type) -> None:
    graph = graph_of(kind)
    plain = qdq_coverage(graph.proto)
    assert (plain.quantized, plain.weight_only, plain.pairs) == (0, 0, 0)
    found = {}
    for scheme in ("w8a8", "w8a16"):
        placement = placed(graph, scheme, "trt")
        model = insert_qdq(graph.proto, placement, grids_of(graph, placement), {})
        found[scheme] = qdq_coverage(model), len(placement.activations)
    count = plain.products
    assert found["w8a8"][0] == Coverage(count, count, 0, found["w8a8"][1])
    assert found["w8a16"][0] == Coverage(count, 0, count, 0)
