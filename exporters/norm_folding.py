"""BatchNormalization merged into the convolution before it, on an ONNX graph of any origin.

With ``y = gamma (x - mean) / sqrt(variance + epsilon) + beta`` behind ``x = W * u + b``, the factor
``gamma / sqrt(variance + epsilon)`` goes into the output channels of W, in double precision.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Container

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.exporters.float_view import WEIGHT_AXES

_DEFAULT_EPSILON = 1e-5


def fold_batch_norms(graph: onnx.GraphProto) -> None:
    """Folds, in place, every BatchNormalization whose input a convolution makes for it alone.

    The convolution then computes the BatchNormalization's tensor. Weights that others read too are
    left for them, and so is whatever cannot be folded: groups of a transposed convolution, training
    mode, parameters that are no float32 constants, a variance below zero.
    """
    folding = _Folding(graph)
    folded = [node for node in graph.node if folding.fold(node)]
    for node in folded:
        graph.node.remove(node)


class _Folding:
    """The pass over one graph: who reads what, and what each fold changes."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.producer = {tensor: node for node in graph.node for tensor in node.output}
        self.readers = Counter(tensor for node in graph.node for tensor in node.input)
        self.readers.update(read_by_bodies(graph))
        self.readers.update(value.name for value in graph.output)
        self.taken = {*self.constants, *self.producer, *(value.name for value in graph.input)}

    def fold(self, norm: onnx.NodeProto) -> bool:
        """Returns whether ``norm`` was a BatchNormalization and is folded; it is still listed."""
        attributes = {a.name: helper.get_attribute_value(a) for a in norm.attribute}
        if norm.op_type != "BatchNormalization" or attributes.get("training_mode"):
            return False
        layer = self.producer.get(norm.input[0])
        if layer is None or not self._foldable(layer, norm):
            return False
        gamma, beta, mean, variance = (self._value(name) for name in norm.input[1:5])
        squared = variance + attributes.get("epsilon", _DEFAULT_EPSILON)
        if not (squared > 0).all():
            return False
        factor = gamma / np.sqrt(squared)
        weight = self._value(layer.input[1])
        shape = [1] * weight.ndim
        shape[WEIGHT_AXES[layer.op_type]] = -1
        old = self._value(layer.input[2]) if _has_bias(layer) else np.zeros_like(mean)
        bias = (old - mean) * factor + beta
        values = {1: weight * factor.reshape(shape), 2: bias}
        stems = {1: layer.input[1], 2: layer.input[2] if _has_bias(layer) else f"{layer.name}.bias"}
        inputs = [*layer.input[:2], ""]
        for index, value in values.items():
            inputs[index] = self._store(stems[index], value)
        layer.input[:] = inputs
        layer.output[0] = norm.output[0]
        self.producer[norm.output[0]] = layer
        return True

    def _foldable(self, layer: onnx.NodeProto, norm: onnx.NodeProto) -> bool:
        grouped = any(a.name == "group" and a.i > 1 for a in layer.attribute)
        if layer.op_type not in WEIGHT_AXES or (grouped and layer.op_type == "ConvTranspose"):
            return False
        needed = [layer.input[1], *norm.input[1:5], *(layer.input[2:3] if _has_bias(layer) else [])]
        if not all(name in self.constants for name in needed):
            return False
        weight, *others = (self.constants[name] for name in needed)
        channels = [weight.dims[WEIGHT_AXES[layer.op_type]]]
        return (
            all(tensor.data_type == TensorProto.FLOAT for tensor in (weight, *others))
            and all(list(tensor.dims) == channels for tensor in others)
            and self.readers[norm.input[0]] == 1
            and not any(norm.output[1:])
        )

    def _value(self, name: str) -> npt.NDArray[np.float64]:
        with np.errstate(invalid="ignore"):  # a signalling NaN; the quantizer refuses it later
            return np.asarray(numpy_helper.to_array(self.constants[name]), dtype=np.float64)

    def _store(self, stem: str, value: npt.NDArray[np.float64]) -> str:
        """Writes an initializer in place of ``stem``, or beside it where others read that too."""
        name = stem
        if stem not in self.constants or self.readers[stem] > 1:
            name = stem if stem not in self.taken else free_name(stem, self.taken)
            self.constants[name] = self.graph.initializer.add()
            self.taken.add(name)
            self.readers[stem] -= 1
            self.readers[name] = 1
        self.constants[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
        return name


def _has_bias(layer: onnx.NodeProto) -> bool:
    return len(layer.input) > 2 and bool(layer.input[2])


def read_by_bodies(graph: onnx.GraphProto) -> set[str]:
    """Returns the tensors that the bodies of If, Loop and Scan read."""
    bodies = [body for node in graph.node for body in _bodies(node)]
    found: set[str] = set()
    while bodies:
        body = bodies.pop()
        for node in body.node:
            found.update(node.input)
            bodies += _bodies(node)
        found.update(value.name for value in body.output)
    return found


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [g for a in node.attribute for g in (*a.graphs, *([a.g] if a.HasField("g") else []))]


def free_name(stem: str, taken: Container[str]) -> str:
    """Returns ``stem`` with the first number behind it that makes a name nobody has."""
    numbered = (f"{stem}_{number}" for number in itertools.count(1))
    return next(name for name in numbered if name not in taken)
