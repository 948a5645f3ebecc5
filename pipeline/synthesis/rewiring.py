"""The float network as synthesis sees it: swing convolutions, and its last features in reach."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.network import BatchNormLayer, StatisticsNetwork, parameter_of
from fdda_deploy.pipeline.synthesis.augmentation import shifted

_CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.convolution.default)
_STRIDE = 3
"""Position of the stride among a convolution's arguments."""
_LINEAR = torch.ops.aten.linear.default
_TRANSPARENT = ("dropout", "reshape", "view", "flatten", "squeeze", "clone", "to", "alias")
"""Operators between the classifier and the output that change no class's place."""


@dataclass(frozen=True)
class Seen:
    """What one forward shows.

    Attributes:
        logits: ``(N, classes)``.
        bn_inputs: One ``(N, C_l, ...)`` per BatchNorm layer, in execution order.
        features: ``(N, F)``, the last linear layer's input; None where there is no such layer.
    """

    logits: Tensor
    bn_inputs: tuple[Tensor, ...]
    features: Tensor | None

    def first(self, count: int) -> Seen:
        """Returns what the first ``count`` images show."""
        features = None if self.features is None else self.features[:count]
        return Seen(self.logits[:count], tuple(x[:count] for x in self.bn_inputs), features)


class Swing(nn.Module):
    """Moves its input by up to one pixel, edges mirrored; swing convolution of Genie (CVPR 2023).

    Strided convolutions read some pixels more often than others, which leaves a checkerboard in
    images that are optimised through them. Inputs of a single row or column stay.
    """

    def __init__(self, random: torch.Generator) -> None:
        super().__init__()
        self.random, self.active = random, True

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x``, moved while ``active``."""
        return shifted(x, 1, self.random) if self.active else x


class SeeingNetwork(nn.Module):
    """A traced network whose forward returns `Seen`; it shares its tensors with the one it is from.

    Args:
        network: Traced float network.
        swing: Source of the shifts of strided convolutions' inputs; None leaves those alone.

    Attributes:
        layers: The BatchNorm layers.
        class_rows: ``(classes, F)``, the last linear layer's weight; None where there is none.
    """

    def __init__(self, network: StatisticsNetwork, swing: torch.Generator | None = None) -> None:
        super().__init__()
        self.layers: tuple[BatchNormLayer, ...] = network.layers
        graph = copy.deepcopy(network.graph_module.graph)
        output = next(node for node in graph.nodes if node.op == "output")
        logits, bn_inputs = output.args[0]
        linear = _classifier(logits)
        self.class_rows: Tensor | None = None
        if linear is not None:
            self.class_rows = parameter_of(network.graph_module, linear.args[1]).detach()
        output.args = ((logits, bn_inputs, None if linear is None else linear.args[0]),)
        module = fx.GraphModule(network.graph_module, graph)
        self.swings = [] if swing is None else _add_swings(module, swing)
        module.recompile()
        self.graph_module = module

    def forward(self, x: Tensor) -> Seen:
        """Returns what a batch ``(N, C, H, W)`` shows."""
        logits, bn_inputs, features = self.graph_module(x)
        return Seen(logits, tuple(bn_inputs), features)

    def rows_of(self, labels: Tensor, recipe: str) -> Tensor:
        """Returns the classifier's rows ``(N, F)`` of some classes.

        Raises:
            ConfigError: The network does not end in a linear layer.
        """
        if self.class_rows is None:
            raise ConfigError(
                f"recipe {recipe}: margin_weight needs a network that ends in a linear layer, and "
                "this one does not. Set margin_weight = 0 under [synthesis.overrides]."
            )
        return self.class_rows[labels]


def _classifier(node: object) -> fx.Node | None:
    """Returns the linear layer that makes the logits, or None."""
    while isinstance(node, fx.Node) and node.op == "call_function":
        if node.target is _LINEAR:
            return node
        name = str(node.target).removeprefix("aten.").split(".")[0]
        if name not in _TRANSPARENT:
            return None
        node = node.args[0]
    return None


def _add_swings(module: fx.GraphModule, random: torch.Generator) -> list[Swing]:
    swings: list[Swing] = []
    for node in list(module.graph.nodes):
        strides = node.args[_STRIDE] if len(node.args) > _STRIDE else (1,)
        if node.target not in _CONVOLUTIONS or max(strides) < 2:
            continue
        swing = Swing(random)
        name = f"swing{len(swings)}"
        module.add_submodule(name, swing)
        with module.graph.inserting_before(node):
            moved = module.graph.call_module(name, (node.args[0],))
        node.replace_input_with(node.args[0], moved)
        swings.append(swing)
    return swings
