"""Every name that an exported graph carries: readable, stable, derived from the module path."""

from __future__ import annotations

from collections import Counter

INPUT = "input"
OUTPUT = "logits"


def quantize_node(tensor: str) -> str:
    """Name of the QuantizeLinear node on ``tensor``."""
    return f"{tensor}/QuantizeLinear"


def clip_node(tensor: str) -> str:
    """Name of the Clip node that keeps ``tensor`` on a grid of fewer than 8 bits."""
    return f"{tensor}/Clip"


def dequantize_node(tensor: str) -> str:
    """Name of the DequantizeLinear node on ``tensor``."""
    return f"{tensor}/DequantizeLinear"


def clipped(tensor: str) -> str:
    """Name of ``tensor`` after the Clip of its narrow grid."""
    return f"{tensor}_clipped"


def quantized(tensor: str) -> str:
    """Name of the integers of ``tensor``."""
    return f"{tensor}_quantized"


def dequantized(tensor: str) -> str:
    """Name of the values of ``tensor`` after Q and DQ."""
    return f"{tensor}_dequantized"


def scale(tensor: str) -> str:
    """Name of the scale constant of ``tensor``."""
    return f"{tensor}_scale"


def zero_point(tensor: str) -> str:
    """Name of the zero-point constant of ``tensor``."""
    return f"{tensor}_zero_point"


def bound(tensor: str, which: str) -> str:
    """Name of the ``low`` or ``high`` Clip bound of ``tensor``."""
    return f"{tensor}_{which}"


def typed(name: str, kind: str) -> str:
    """Name of the copy of a tensor or node in another float type, ``fp16`` or ``fp32``."""
    return f"{name}_{kind}"


def cast_node(tensor: str, kind: str) -> str:
    """Name of the Cast of ``tensor`` to ``fp16`` or ``fp32``."""
    return f"{tensor}/Cast_{kind}"


def tensor_of_node(node: str) -> str:
    """Name of the output of ``node``."""
    return f"{node}_output"


class NodeNames:
    """Hands out unique node names: ``<module path>/<Op>``, then ``<module path>/<Op>_1`` ...

    Example:
        >>> names = NodeNames()
        >>> names("layer1.0", "Relu"), names("layer1.0", "Relu")
        ('layer1.0/Relu', 'layer1.0/Relu_1')
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def __call__(self, path: str, op_type: str) -> str:
        """Returns the next free name for ``op_type`` at module ``path`` (may be empty)."""
        stem = f"{path}/{op_type}" if path else op_type
        count = self._counts[stem]
        self._counts[stem] += 1
        return stem if count == 0 else f"{stem}_{count}"
