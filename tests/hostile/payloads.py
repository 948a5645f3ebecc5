"""Files that would act if they were believed, and a command line to hand them to."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.cli import main


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def pickled(marker: Path) -> bytes:
    """Returns a pickle that makes the folder ``marker``."""
    return pickle.dumps(Payload(marker))


def network(location: str | None = None, **data: str) -> bytes:
    """Returns a convolution as an ONNX file.

    Args:
        location: Where its weights lie, if in another file.
        data: ``offset`` and ``length`` of the weights there.
    """
    values = np.random.default_rng(0).random((4, 3, 3, 3), np.float32)
    tensor = numpy_helper.from_array(values, "w")
    if location is not None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **data}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    shapes = {"x": ["n", 3, 8, 8], "y": ["n", 4, 6, 6]}
    ends = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in shapes.items()]
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [tensor])
    opsets = [helper.make_opsetid("", 21)]
    data_: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return data_


def shifted(name: str) -> bytes:
    """Returns a Q/DQ pair of that name with a zero-point of 5, which TensorRT refuses."""
    scale = numpy_helper.from_array(np.float32(0.1), "s")
    zero = numpy_helper.from_array(np.int8(5), "z")
    ends = [helper.make_tensor_value_info(k, TensorProto.FLOAT, [1, 3, 8, 8]) for k in "xy"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name=name),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name=f"{name}d"),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [scale, zero])
    opsets = [helper.make_opsetid("", 21)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return data


class Command:
    """Runs commands in this process, and says what they wrote to the terminal."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def run(self, *words: object) -> tuple[int, str, str]:
        """Returns exit code, stdout and stderr."""
        self._capsys.readouterr()
        code = main([str(word) for word in words])
        told = self._capsys.readouterr()
        return code, told.out, told.err

    def refused(self, *words: object) -> str:
        """Returns the one line of a command that must fail."""
        code, out, err = self.run(*words)
        assert code in {1, 2}, f"exit code {code}: {out}{err}"
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err
        return err.removeprefix("error: ").rstrip("\n")
