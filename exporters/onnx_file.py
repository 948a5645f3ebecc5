"""Reads an ONNX file that anybody may have written: whole, from its own folder, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # none shipped
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_model

from fdda_deploy.errors import ExportError

MAX_BYTES = 2**31 - 1
"""What one protobuf message may hold, and so what a graph with its weights may weigh here."""


def read_onnx(path: Path) -> onnx.ModelProto:
    """Returns the model in ``path`` with its external data, which must lie in the same folder.

    Raises:
        ExportError: The file is missing, over 2 GB (its data included), no ONNX graph, or holds
            element types that ONNX does not have; its data is missing, cut short, or outside its
            folder.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ExportError(_too_large(path, size))
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}. Want an ONNX file.") from None
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        raise ExportError(_unreadable(path, error)) from None
    if not model.graph.node:
        raise ExportError(f"{path}: no node in its graph. Want an ONNX file with a network.")
    tensors = list(_tensors(model.graph))
    known = set(TensorProto.DataType.values())
    for tensor in tensors:
        if tensor.data_type not in known:
            raise ExportError(
                f"{path}: tensor {_name(tensor)}: element type {tensor.data_type} is none that "
                "ONNX has. Export it again, or update onnx."
            )
    outside = [tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL]
    if outside:
        _require_data(path, size, outside)
        try:
            load_external_data_for_model(model, str(path.resolve().parent))
        except (OSError, onnx.checker.ValidationError, ValueError) as error:
            raise ExportError(_unreadable(path, error)) from None
    return model


def _require_data(path: Path, size: int, tensors: list[TensorProto]) -> None:
    """Refuses data outside the file's folder, missing, cut short, or too much of it."""
    folder = path.resolve().parent
    total = size
    for tensor in tensors:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        location = facts.get("location", "")
        place = (folder / location.replace("\0", "")).resolve()
        if (
            not location
            or "\0" in location
            or Path(location).is_absolute()
            or not place.is_relative_to(folder)
        ):
            raise ExportError(
                f"{path}: tensor {_name(tensor)} keeps its data in {location!r}, outside the "
                "file's folder. Refused: copy the data beside the file and export it again."
            )
        if not place.is_file():
            raise ExportError(
                f"{path}: the data of tensor {_name(tensor)} is missing: no file {location!r} "
                "beside it. Copy both files together."
            )
        try:
            offset, length = int(facts.get("offset") or 0), int(facts.get("length") or 0)
        except ValueError:
            offset, length = -1, 0
        held = place.stat().st_size
        length = length or held - offset
        if offset < 0 or length < 0 or offset + length > held:
            raise ExportError(
                f"{path}: tensor {_name(tensor)} wants bytes {offset} to {offset + length} of "
                f"{location!r}, which has {held}. Copy both files again."
            )
        total += length
    if total > MAX_BYTES:
        raise ExportError(_too_large(path, total))


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Yields every tensor stored in a graph and in the bodies within it."""
    pending = [graph]
    while pending:
        body = pending.pop()
        yield from body.initializer
        for node in body.node:
            for entry in node.attribute:
                if entry.type == onnx.AttributeProto.TENSOR:
                    yield entry.t
                yield from entry.tensors
                pending += [entry.g] if entry.type == onnx.AttributeProto.GRAPH else entry.graphs


def _too_large(path: Path, size: int) -> str:
    return (
        f"{path}: {size / 1e9:.1f} GB with its data, over the 2 GB that one ONNX message holds. "
        "Quantize the weights to integers first, or check a smaller part of the network."
    )


def _unreadable(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"{path}: not a readable ONNX file ({reason}). Export it again."


def _name(tensor: TensorProto) -> str:
    return str(tensor.name) or "without a name"
