"""Refuses damaged ONNX bytes before NVIDIA's parser sees them: on some of them it crashes.

Flipping one to ten random bytes of a small graph ends the process inside TensorRT-RTX 1.7.1's
parser about three times in a thousand. The ONNX checker refuses all that were found, and takes
0.2 s for 300 MB. Two things pass the checker and crash all the same: names that are not UTF-8
break TensorRT's Python bindings, and a DequantizeLinear whose scale is computed from a graph input
ends the process inside the parser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fdda_deploy.engines.messages import one_line
from fdda_deploy.errors import BuildError
from fdda_deploy.quant.element_types import TENSORRT_TYPES

NODE = re.compile(r"==> Context: Bad node spec for node\. Name: (.*) OpType: (\S+)")
MAX_BYTES = 2**31 - 1
"""No protobuf message, and so no ONNX model in one piece, is longer."""
MICROSOFT = ("com.microsoft", "com.ms.")
"""ONNX Runtime's domains, whose Q and DQ compute as ONNX's do."""
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
CONSTANTS = (("scale", "T005"), ("zero-point", "T003"))
"""Their second and third input, and the rule that wants each to be a constant."""


def require_sound_onnx(model: bytes) -> None:
    """Refuses bytes that are no ONNX graph, or one that breaks the ONNX standard.

    Raises:
        BuildError: The checker's reason in one line, after the node's name where it has one; a
            weight that lies in another file; a scale that depends on an input; over 2 GB.
    """
    import onnx.checker
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # none shipped

    if len(model) > MAX_BYTES:
        raise BuildError(_too_large("the ONNX model", len(model)))
    try:
        parsed = onnx.load_from_string(model)
        _require_whole(parsed)  # first: the checker looks for such files in the present folder
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, DecodeError) as error:
        text = str(error)
        node = NODE.search(text)
        where = f"{node[1]} ({node[2]})" if node else f"the ONNX model of {len(model):,} bytes"
        raise BuildError(
            f"{where} is not sound ONNX: {one_line(NODE.sub('', text))}. Export it again."
        ) from error
    broken = [name for name in _names(parsed.graph) if not _is_text(name)]
    if broken:
        raise BuildError(f"ONNX name {broken[0]!r} is not UTF-8. Rename it and export again.")
    _require_constant_scales(parsed.graph, set())
    _require_types(parsed.graph)
    _require_own_domains(parsed)


def load_onnx(path: Path) -> bytes:
    """Returns the ONNX model in ``path`` in one piece, with the weights that lie beside it.

    Raises:
        BuildError: The file cannot be read or is no ONNX, a weight lies outside the model's own
            folder or is cut short, or all of it is over 2 GB.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise BuildError(_too_large(str(path), size))
        data = path.read_bytes()
        model = onnx.load_from_string(data)
    except OSError as error:
        raise BuildError(f"{path}: cannot be read ({error.strerror}). Correct the path.") from error
    except (ValueError, DecodeError) as error:
        raise BuildError(
            f"{path}: no ONNX model ({one_line(str(error))}). Export it again."
        ) from error
    if not model.graph.node:
        raise BuildError(f"{path}: no node in its graph. Want an ONNX file with a network.")
    outside = [tensor for tensor in _tensors(model) if _is_external(tensor)]
    if not outside:
        return data
    for tensor in outside:
        part = _external_bytes(path, tensor)
        size += len(part)
        if size > MAX_BYTES:
            raise BuildError(_too_large(f"{path} with its weights", size))
        for pointer in ("external_data", "data_location"):
            tensor.ClearField(pointer)
        tensor.raw_data = part
    joined: bytes = model.SerializeToString()
    return joined


def _external_bytes(path: Path, tensor: Any) -> bytes:
    """Returns the bytes that ``tensor`` says lie in another file of the model's folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, folder = entries.get("location", ""), path.resolve().parent
    where = f"{path}: weight {tensor.name!r}"
    try:
        source = (folder / location).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise BuildError(f"{where} names no file: {location!r}. Export it again.") from error
    if not location or not source.is_relative_to(folder) or not source.is_file():
        raise BuildError(
            f"{where} lies in {location!r}, which is no file inside the model's own folder. "
            "Put the file beside the model, or export in one piece."
        )
    numbers = [entries.get("offset", "0"), entries.get("length", "-1")]
    if not all(re.fullmatch(r"-1|\d{1,18}", number) for number in numbers):
        raise BuildError(f"{where} has offset {numbers[0]!r}, length {numbers[1]!r}: want numbers.")
    start, length = (int(number) for number in numbers)
    there = source.stat().st_size
    length = there - start if length < 0 else length
    if start < 0 or length < 0 or start + length > there:
        raise BuildError(
            f"{where} wants bytes {start:,} to {start + length:,} of {location}, which has "
            f"{there:,}. Copy the file again."
        )
    if length > MAX_BYTES:
        raise BuildError(_too_large(where, length))
    with source.open("rb") as file:
        file.seek(start)
        part: bytes = file.read(length)
    return part


def _too_large(what: str, size: int) -> str:
    return (
        f"{what} has {size:,} bytes, and ONNX in one piece holds at most 2 GB. "
        "Quantize the weights first: INT8 takes a quarter of float."
    )


def _require_whole(model: Any) -> None:
    outside = next((tensor.name for tensor in _tensors(model) if _is_external(tensor)), None)
    if outside is not None:
        raise BuildError(
            f"weight {outside!r} lies in another file, and only the model was given. "
            "Give the path of the model, with that file beside it."
        )


def _require_constant_scales(graph: Any, varying: set[str]) -> None:
    """Refuses a scale or zero-point that depends on what the network is fed.

    Args:
        graph: A graph, or one inside If, Loop or Scan.
        varying: Tensors outside of ``graph`` that do.
    """
    held = {tensor.name for tensor in graph.initializer}
    varying = varying | {value.name for value in graph.input if value.name not in held}
    for node in graph.node:
        for index, (what, rule) in enumerate(CONSTANTS, start=1):
            if node.op_type in QUANTIZERS and varying.intersection(node.input[index : index + 1]):
                name = node.name or ", ".join(node.output)
                raise BuildError(
                    f"{name} ({node.op_type}): its {what} depends on the network's input, and "
                    f"TensorRT wants a constant ({rule}). Calibrate, and export static ranges."
                )
        inner = [a.g for a in node.attribute if a.HasField("g")]
        for subgraph in inner:
            _require_constant_scales(subgraph, varying)
        if varying.intersection(node.input) or inner:
            varying.update(node.output)


def _require_types(graph: Any) -> None:
    """Refuses inputs and outputs of a type that TensorRT lacks: its own words name neither."""
    from onnx import TensorProto

    known = {TensorProto.DataType.Value(name) for name in TENSORRT_TYPES}
    for what, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            number = value.type.tensor_type.elem_type
            if number and number not in known:
                names = {value: name for name, value in TensorProto.DataType.items()}
                raise BuildError(
                    f"{what} {value.name!r} has type {names.get(number, number)}, which TensorRT "
                    "does not have (T016). Export it in float32, or cut off what makes or reads it."
                )


def _require_own_domains(model: Any) -> None:
    """Refuses another domain's operator with a name of ONNX's: the parser ignores the domain."""
    import onnx

    local = {(function.domain, function.name) for function in model.functions}
    for node in model.graph.node:
        foreign = node.domain not in {"", "ai.onnx"} and not node.domain.startswith(MICROSOFT)
        if foreign and onnx.defs.has(node.op_type) and (node.domain, node.op_type) not in local:
            raise BuildError(
                f"{node.name or node.output[0]} ({node.domain}.{node.op_type}): TensorRT ignores "
                f"the domain and would run ONNX's {node.op_type} (T016). Export it as ONNX "
                "operators, or name it as your plugin is named."
            )


def _tensors(model: Any) -> Iterator[Any]:
    """Yields every tensor that a model holds: initializers and constants, also inside subgraphs."""
    graphs = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for attribute in (a for node in graph.node for a in node.attribute):
            yield from (attribute.t, *attribute.tensors)
            graphs += [attribute.g] if attribute.HasField("g") else []
            graphs += attribute.graphs


def _is_external(tensor: Any) -> bool:
    return bool(tensor.data_location == 1 or tensor.external_data)  # 1: TensorProto.EXTERNAL


def _names(graph: Any) -> Iterator[object]:
    for value in (*graph.input, *graph.output, *graph.initializer):
        yield value.name
    for node in graph.node:
        yield from (node.name, node.op_type, *node.input, *node.output)


def _is_text(name: object) -> bool:
    return isinstance(name, str)  # protobuf hands out bytes for what does not decode
