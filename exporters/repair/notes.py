"""What one repair leaves for the next, and for the proof, that the graph itself does not say."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field


@dataclass
class Notes:
    """Facts about tensors and layers of one graph under repair.

    Attributes:
        bounded: Tensors that quantizing cuts off at INT8's lowest value, as was measured: a
            function may be hidden in that, so their pairs are not taken off.
        moved: Tensors whose zero is elsewhere, since biases took it up.
        scaled: By tensor, how many times as large it is, since layers were multiplied.
        coarsened: Tensors whose grid was given a larger scale to share.
        multiplied: By layer name, how many times as large its weight is for that.
    """

    bounded: Set[str] = frozenset()
    moved: set[str] = field(default_factory=set)
    scaled: dict[str, float] = field(default_factory=dict)
    coarsened: set[str] = field(default_factory=set)
    multiplied: dict[str, float] = field(default_factory=dict)
