"""A network as a graph: traced once with torch.export, with its BatchNorm inputs in reach.

The graph, not the module tree, says what a network computes: functional operators, shared modules
and BatchNorm called as a function are all plain nodes here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fdda_deploy.errors import ModelError

BATCH_NORM = torch.ops.aten.batch_norm.default
TRACE_BATCH = 2
"""Smallest batch that torch.export does not specialise on."""


@dataclass(frozen=True)
class BatchNormLayer:
    """One BatchNorm call of a network, in execution order.

    Attributes:
        name: Module path, or the graph node's name where BatchNorm was called as a function.
        running_mean: ``(C,)`` float32.
        running_var: ``(C,)`` float32, the variance that training tracked.
    """

    name: str
    running_mean: Tensor
    running_var: Tensor

    @property
    def num_channels(self) -> int:
        """Channels of the BatchNorm input."""
        return int(self.running_mean.numel())


class StatisticsNetwork(nn.Module):
    """A float network that returns its logits and the input of every BatchNorm layer.

    ``forward(x)`` takes ``(N, C, H, W)`` float32 and returns ``(logits, bn_inputs)``: logits
    ``(N, classes)`` and one tensor per entry of ``layers``, in execution order. Parameters do not
    require gradients; gradients flow to ``x``.
    """

    def __init__(self, graph_module: fx.GraphModule, layers: tuple[BatchNormLayer, ...]) -> None:
        super().__init__()
        self.graph_module = graph_module.requires_grad_(False)
        self.layers = layers

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns ``(logits, bn_inputs)`` of a batch ``(N, C, H, W)``."""
        logits, bn_inputs = self.graph_module(x)
        return logits, tuple(bn_inputs)


def trace(module: nn.Module, image_shape: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """Returns ``module`` (in eval mode) traced for a dynamic batch of ``image_shape`` images.

    Raises:
        ModelError: The network's Python cannot be traced, or it fixes the batch size; the message
            has torch's reason in one line.
    """
    parameter = next(module.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    example = torch.zeros(TRACE_BATCH, *image_shape, device=device)
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch warns of its own deprecations while tracing
        try:
            return torch.export.export(
                module.eval(), (example,), dynamic_shapes=({0: batch},), strict=False
            )
        except Exception as error:  # torch.export raises dozens of types
            raise ModelError(
                f"{type(module).__name__} cannot be traced for a batch of "
                f"{'x'.join(map(str, image_shape))} images: {_first_line(error)}. Check "
                "--input-size, and that forward() takes one image batch and has no "
                "data-dependent Python."
            ) from error


def graph_module_from(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """Returns the program as an executable graph without its input guards."""
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    # A plain GraphModule: the one that torch.export makes refuses train() and eval().
    return fx.GraphModule(module, module.graph)


def statistics_network(program: torch.export.ExportedProgram) -> StatisticsNetwork:
    """Returns the traced float network with its BatchNorm inputs as extra outputs.

    A network without BatchNorm gives ``layers == ()``.
    """
    graph_module = graph_module_from(program)
    nodes = [node for node in graph_module.graph.nodes if node.target is BATCH_NORM]
    output = next(node for node in graph_module.graph.nodes if node.op == "output")
    output.args = ((_single(output.args[0]), tuple(node.args[0] for node in nodes)),)
    # torch.export fixed how outputs are unflattened; plain tuples come out of plain codegen.
    graph_module.graph.set_codegen(fx.graph.CodeGen())
    graph_module.recompile()
    layers = tuple(_layer(graph_module, node) for node in nodes)
    return StatisticsNetwork(graph_module, layers)


def parameter_of(graph_module: fx.GraphModule, node: object) -> Tensor:
    """Returns the parameter, buffer or constant that a ``get_attr`` node reads."""
    assert isinstance(node, fx.Node)
    value: Any = graph_module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor)
    return value


def module_path(node: fx.Node) -> str:
    """Returns the module path a graph node came from, or the node's own name."""
    stack: dict[str, tuple[str, object]] = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths and paths[-1] else str(node.name)


def _layer(graph_module: fx.GraphModule, node: fx.Node) -> BatchNormLayer:
    mean, var = (parameter_of(graph_module, node.args[index]).detach() for index in (3, 4))
    return BatchNormLayer(module_path(node), mean.float().clone(), var.float().clone())


def _single(result: object) -> object:
    """Returns the logits of a network that returns them alone or first."""
    while isinstance(result, tuple | list):
        result = result[0]
    return result


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")


Progress = Callable[[int, int, str], None]
"""Called with (done, total, text) by everything that takes more than a moment."""
