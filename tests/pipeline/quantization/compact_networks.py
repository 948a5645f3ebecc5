"""A small residual network, and any network placed for a compact plan."""

from __future__ import annotations

import torch
from quant_networks import float_graph
from torch import Tensor, nn

from fdda_deploy.exporters.compact import place_compact
from fdda_deploy.pipeline.quantization.convert import GraphMap, QuantNetwork, convert
from fdda_deploy.quant.scheme import scheme_from_name


class Residuals(nn.Module):
    """Two residual blocks of plain convolutions: four tensors of one shape are quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(5))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norms[4](self.stem(x)))
        for index in (0, 2):
            y = torch.relu(self.norms[index](self.convs[index](x)))
            x = torch.relu(x + self.norms[index + 1](self.convs[index + 1](y)))
        return self.head(x.mean((2, 3)))


def compact_network(kind: type[nn.Module] = Residuals) -> QuantNetwork:
    """A fresh w8a8 network with pass-through quantizers, placed by `place_compact`."""
    graph = float_graph(kind)
    placement = place_compact(
        graph.proto,
        scheme_from_name("w8a8"),
        torch_tensors=graph.fx_from_tensor,
        parameters=graph.parameter_from_initializer,
    )
    names = GraphMap(graph.fx_from_tensor, graph.fx_from_node, graph.parameter_from_initializer)
    return convert(graph.module, placement, names)
