"""How much of a graph is quantized: products whose input and weight both come from a DQ."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Coverage:
    """Q/DQ coverage of one graph.

    Attributes:
        products: Convolutions and matrix products.
        quantized: Those with both operands behind a DequantizeLinear.
        weight_only: Those with the weight alone behind one.
        pairs: QuantizeLinear nodes.
    """

    products: int
    quantized: int
    weight_only: int
    pairs: int


def qdq_coverage(model: onnx.ModelProto) -> Coverage:
    """Returns how many products of ``model`` are quantized."""
    nodes = model.graph.node
    dequantized = {t for node in nodes if node.op_type == "DequantizeLinear" for t in node.output}
    both = weights = products = 0
    for node in nodes:
        if node.op_type not in PRODUCTS or len(node.input) < 2:
            continue
        products += 1
        if node.input[1] in dequantized:
            both += node.input[0] in dequantized
            weights += node.input[0] not in dequantized
    pairs = sum(node.op_type == "QuantizeLinear" for node in nodes)
    return Coverage(products, both, weights, pairs)
