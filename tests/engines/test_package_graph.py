"""What a package says of its graph, or why it takes no such graph."""

from __future__ import annotations

import onnx
import pytest

from fdda_deploy.engines.package_manifest import described_graph
from fdda_deploy.errors import EngineError


def test_a_graph_of_an_unknown_type_is_refused_in_one_line() -> None:
    value = onnx.helper.make_tensor_value_info("x\ny", 1, [1])
    value.type.tensor_type.elem_type = 65
    graph = onnx.helper.make_graph([], "g", [value], [])
    with pytest.raises(EngineError, match=r"'x\\ny' is of the unknown element type 65; want"):
        described_graph(onnx.helper.make_model(graph).SerializeToString())
