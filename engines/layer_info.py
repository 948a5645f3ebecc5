"""The layers of an engine from its inspector's JSON: TensorRT 10's schema and TensorRT 11's.

``trtexec --exportLayerInfo`` and ``IEngineInspector`` write an object with ``Layers`` and the
engine's inputs and outputs: ``Bindings`` in 10, names or objects; ``I/O Tensors`` in 11, objects.
A layer is an object where the engine was built with detailed verbosity, else only its name. Its
tensors say format and type in one text, ``Format/Datatype``, in 10; in two in 11.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from fdda_deploy.errors import EngineError

ADVICE = "Write it with trtexec --exportLayerInfo=FILE --profilingVerbosity=detailed."
PRECISIONS = (
    ("FP8", r"fp8|e4m3"),
    ("FP4", r"fp4|e2m1"),
    ("INT4", r"int4"),
    ("INT8", r"int8|uint8"),
    ("BF16", r"bf16|bfloat16"),
    ("FP16", r"fp16|half|float16"),
    ("TF32", r"tf32"),
    ("INT32", r"int32"),
    ("INT64", r"int64"),
    ("BOOL", r"bool"),
    ("FP32", r"fp32|float"),
)
"""Name by what a type's text holds, the first that fits; ``float`` last, for it is in others."""


@dataclass(frozen=True)
class EngineLayer:
    """One layer as it runs.

    Attributes:
        name: Of the engine; fused layers join the names of their parts.
        kind: ``LayerType``; None where the engine kept names alone.
        inputs: Precision of each input, in order; None for a type that is not known.
        outputs: The same for the outputs.
        weights: Precision of the weights; None where the layer has none.
        tactic: Name of the kernel; None where it is not told.
        operators: ONNX nodes that the layer stands for, as its metadata tells.
    """

    name: str
    kind: str | None
    inputs: tuple[str | None, ...] = ()
    outputs: tuple[str | None, ...] = ()
    weights: str | None = None
    tactic: str | None = None
    operators: tuple[str, ...] = ()

    @property
    def precision(self) -> str | None:
        """What it computes in: the type of its weights, else of its inputs, else of its outputs.

        None where the engine kept names alone.
        """
        if self.weights is not None:
            return self.weights
        return next((p for p in (*self.inputs, *self.outputs) if p is not None), None)


@dataclass(frozen=True)
class EngineLayers:
    """What an inspector said.

    Attributes:
        layers: In order of execution.
        tensors: Names of the engine's inputs and outputs.
        schema: ``10`` or ``11``: whose keys the file has; None where it lists neither.
    """

    layers: tuple[EngineLayer, ...]
    tensors: tuple[str, ...]
    schema: str | None


def layers_from_json(document: object, where: str) -> EngineLayers:
    """Returns the layers in an inspector's document.

    Args:
        document: What ``json.loads`` gave.
        where: What messages call it.

    Raises:
        EngineError: No list of layers, or a layer without a name.
    """
    entries = document.get("Layers") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(entries, list):
        raise EngineError(f"{where}: no list named Layers, want an engine's layers. {ADVICE}")
    layers = tuple(_layer(entry, f"{where}: layer {i}") for i, entry in enumerate(entries))
    for key, schema in (("I/O Tensors", "11"), ("Bindings", "10")):
        tensors = document.get(key)
        if isinstance(tensors, list):
            return EngineLayers(layers, tuple(_names(tensors)), schema)
    return EngineLayers(layers, (), None)


def precision_of(text: str) -> str | None:
    """Returns the precision that a type's text names, None where it names none.

    Example:
        >>> precision_of("Thirty-two wide channel vectorized row major Int8 format")
        'INT8'
    """
    lowered = text.lower()
    return next((name for name, pattern in PRECISIONS if re.search(pattern, lowered)), None)


def _layer(entry: object, where: str) -> EngineLayer:
    if isinstance(entry, str):
        return EngineLayer(entry, None)
    name = entry.get("Name") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(name, str):
        raise EngineError(f"{where} has no name, want a name or an object with one. {ADVICE}")
    weights = entry.get("Weights")
    of_weights = weights.get("Type") if isinstance(weights, dict) else None
    return EngineLayer(
        name,
        _text(entry.get("LayerType")),
        tuple(_precisions(entry.get("Inputs"))),
        tuple(_precisions(entry.get("Outputs"))),
        precision_of(of_weights) if isinstance(of_weights, str) else None,
        _text(entry.get("TacticName")),
        tuple(_origins(_text(entry.get("Metadata")) or "")),
    )


def _origins(metadata: str) -> Iterator[str]:
    """Yields the ONNX nodes that a layer was made of."""
    for part in metadata.split("[ONNX Layer: ")[1:]:  # no pattern: its time grows with the square
        name, bracket, _ = part.partition("]")
        if name and bracket:
            yield name


def _precisions(tensors: object) -> Iterator[str | None]:
    for tensor in tensors if isinstance(tensors, list) else []:
        if isinstance(tensor, dict):
            keys = ("Datatype", "DataType", "Format/Datatype", "Format")
            texts = [tensor[key] for key in keys if isinstance(tensor.get(key), str)]
            yield next((p for p in map(precision_of, texts) if p is not None), None)


def _names(tensors: list[object]) -> Iterator[str]:
    for tensor in tensors:
        name = tensor.get("Name") if isinstance(tensor, dict) else tensor
        if isinstance(name, str):
            yield name


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
