"""Refuses damaged ONNX bytes before NVIDIA's parser sees them: on some of them it crashes.

Flipping one to ten random bytes of a small graph ends the process inside TensorRT-RTX 1.7.1's
parser about three times in a thousand. The ONNX checker refuses all that were found, and takes
0.2 s for 300 MB. Names that are not UTF-8 parse, and then break TensorRT's Python bindings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fdda_deploy.engines.messages import one_line
from fdda_deploy.errors import BuildError

NODE = re.compile(r"==> Context: Bad node spec for node\. Name: (.*) OpType: (\S+)")


def require_sound_onnx(model: bytes) -> None:
    """Refuses bytes that are no ONNX graph, or one that breaks the ONNX standard.

    Raises:
        BuildError: The checker's reason in one line, after the node's name where it has one.
    """
    import onnx.checker

    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        text = str(error)
        node = NODE.search(text)
        where = f"{node[1]} ({node[2]})" if node else f"the ONNX model of {len(model):,} bytes"
        raise BuildError(
            f"{where} is not sound ONNX: {one_line(NODE.sub('', text))}. Export it again."
        ) from error
    broken = [name for name in _names(onnx.load_from_string(model).graph) if not _is_text(name)]
    if broken:
        raise BuildError(f"ONNX name {broken[0]!r} is not UTF-8. Rename it and export again.")


def _names(graph: Any) -> Iterator[object]:
    for value in (*graph.input, *graph.output, *graph.initializer):
        yield value.name
    for node in graph.node:
        yield from (node.name, node.op_type, *node.input, *node.output)


def _is_text(name: object) -> bool:
    return isinstance(name, str)  # protobuf hands out bytes for what does not decode
