"""Whose kernels a TensorRT-RTX plan carries: source bytes of generated kernels by layer.

Beside the library's kernels a plan has generated ones, each with its whole source text, most of it
the same preamble. The plan also has the list of what is launched, as text, and there each launch
names the ONNX nodes that it computes. Neither is documented; both were read off TensorRT-RTX
1.7.1, and a test holds them to the builder. A plan without them has no bytes to share out.

The bytes of a kernel are shared by its launches alike, those of a launch by its weighted layers. A
launch that only quantizes is charged to the layers that read what it makes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

_TEXT = re.compile(rb"[\t\n\r -~]{4096,}")
_ENTRY = re.compile(rb"__global__ void\s+__myl_\w{1,300}?_0x([0-9a-f]{32})")
_LAUNCH = re.compile(
    rb"function=\{ name=\w{1,300} fqn=__myl_\w{1,300}?_0x([0-9a-f]{32})\w{0,30} "
    rb'[^\n]{0,20000}?layers="([^"\n]{0,20000})"'
)
_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_PASSING = frozenset({"QuantizeLinear", "DequantizeLinear"})


def source_bytes(plan: bytes) -> dict[str, int]:
    """Returns the bytes of source text by kernel (its hash), copies of one text added up."""
    found: dict[str, int] = defaultdict(int)
    for text in _TEXT.finditer(plan):
        entry = _ENTRY.search(text[0])
        if entry is not None:
            found[entry[1].decode()] += len(text[0])
    return dict(found)


def kernel_bytes(plan: bytes, graph: Any, weighted: Mapping[str, str]) -> dict[str, float]:
    """Returns the share of generated source by weighted node.

    Args:
        plan: Whole.
        graph: The ``onnx.GraphProto`` that it was built from.
        weighted: Weight by the name of the node that multiplies by it.
    """
    readers = defaultdict(list)
    for node in graph.node:
        for tensor in node.input:
            readers[tensor].append(node)
    nodes = {node.name: node for node in graph.node}
    launches: dict[str, list[set[str]]] = defaultdict(list)
    for launch in _LAUNCH.finditer(plan):
        names = _LAYER.findall(launch[2].decode(errors="replace"))
        launches[launch[1].decode()].append(_charged(names, nodes, readers, weighted))
    shares: dict[str, float] = defaultdict(float)
    for kernel, size in source_bytes(plan).items():
        for charged in launches.get(kernel, ()):
            for name in charged:
                shares[name] += size / len(launches[kernel]) / len(charged)
    return dict(shares)


def _charged(
    names: list[str],
    nodes: Mapping[str, Any],
    readers: Mapping[str, list[Any]],
    weighted: Mapping[str, str],
) -> set[str]:
    """Returns the weighted nodes that a launch computes, else those that it quantizes for."""
    own = {name for name in names if name in weighted}
    if own:
        return own
    return {
        reader
        for name in names
        if name in nodes
        for reader in _readers_behind(nodes[name], readers)
        if reader in weighted
    }


def _readers_behind(node: Any, readers: Mapping[str, list[Any]]) -> Iterator[str]:
    """Yields who reads the outputs of ``node``, also behind Q and DQ."""
    pending, seen = [node], set()
    while pending:
        for tensor in pending.pop().output:
            if tensor in seen:
                continue
            seen.add(tensor)
            for reader in readers.get(tensor, ()):
                yield reader.name
                if reader.op_type in _PASSING:
                    pending.append(reader)
