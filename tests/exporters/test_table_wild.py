"""A table meets graphs that somebody broke: a Q/DQ graph or an error of ours, nothing else."""

from __future__ import annotations

from contextlib import suppress

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_graphs import foreign, ranges, table

from fdda_deploy.errors import CalibrationError, ExportError
from fdda_deploy.exporters.table_to_qdq import MISSING, apply_table

SOUND = foreign(21, listed=False)
RECORD = table(ranges(SOUND))
NAMES = st.sampled_from(["", "image", "x2", "x5", "w0", "fc", "fc.bias", "bn0.var", "elsewhere"])
KINDS = st.sampled_from(
    [
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Identity"),
        *("Constant", "If", "Foo", "BatchNormalization", "Clip"),
    ]
)
CHANGES = st.sampled_from(["input", "inputs", "output", "kind", "size", "type", "data"])
SIZES = st.sampled_from([-1, 0, 1, 5, 7, 16, 2**31, 2**40])


@st.composite
def broken(draw: st.DrawFn) -> onnx.ModelProto:
    """The sound graph after one to three changes to its wiring, operators or shapes."""
    model = onnx.ModelProto.FromString(SOUND.SerializeToString())
    for _ in range(draw(st.integers(1, 3))):
        node = draw(st.sampled_from(list(model.graph.node)))
        tensor = draw(st.sampled_from(list(model.graph.initializer)))
        change = draw(
            st.sampled_from(["input", "inputs", "output", "kind", "size", "type", "data"])
        )
        if change == "input" and node.input:
            node.input[draw(st.integers(0, len(node.input) - 1))] = draw(NAMES)
        elif change == "inputs":
            del node.input[draw(st.integers(0, 2)) :]
        elif change == "output":
            node.output[0] = draw(NAMES)
        elif change == "kind":
            node.op_type = draw(KINDS)
        elif change == "size" and tensor.dims:
            tensor.dims[draw(st.integers(0, len(tensor.dims) - 1))] = draw(SIZES)
        elif change == "type":
            tensor.data_type = draw(st.integers(0, 30))
        elif change == "data":
            tensor.raw_data = draw(st.binary(max_size=64)) + tensor.raw_data[:-4]
    return model


@pytest.mark.fuzz
@settings(max_examples=60)
@given(broken(), st.sampled_from(["trt", "rtx", "ort-cpu"]), st.sampled_from(MISSING))
def test_a_broken_graph_is_quantized_or_refused(
    model: onnx.ModelProto, target: str, missing: str
) -> None:
    found = None
    with suppress(ExportError, CalibrationError):
        found = apply_table(RECORD, model, target, missing=missing)
    assert found is None or found.taken
