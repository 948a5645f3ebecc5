"""An in-place operator becomes functional exactly where nobody could tell."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from fdda_deploy.exporters.functional import make_functional

ATEN = torch.ops.aten


class Written(nn.Module):
    """A convolution whose output ``change`` works on."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.layer(x))


def alone(x: Tensor) -> Tensor:
    return nn.functional.relu6(x, inplace=True)


def chained(x: Tensor) -> Tensor:
    return nn.functional.hardtanh_(nn.functional.silu(x, inplace=True), -1.0, 2.0).add_(1.0)


def read_twice(x: Tensor) -> Tensor:
    return nn.functional.relu(x, inplace=True) + x


def through_a_view(x: Tensor) -> Tensor:
    part = x.flatten(1)
    part.clamp_(0.0, 1.0)
    return x * 2


def traced(change: Callable[[Tensor], Tensor]) -> fx.GraphModule:
    module = torch.export.export(
        Written(change).eval(), (torch.zeros(2, 3, 5, 5),), strict=False
    ).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module


def in_place(module: fx.GraphModule) -> list[str]:
    names = [str(n.target).split(".")[1] for n in module.graph.nodes if n.op == "call_function"]
    return [name for name in names if name.endswith("_")]


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        (alone, ["relu6_"], []),
        (chained, ["silu_", "hardtanh_", "add_"], []),
        (read_twice, ["relu_"], []),  # torch.export lets both readers read the result
        (through_a_view, ["clamp_"], ["clamp_"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_only_what_nobody_else_sees_is_replaced(change, before, after):
    module = traced(change)
    assert in_place(module) == before
    make_functional(module)
    assert in_place(module) == after


@pytest.mark.parametrize("change", [alone, chained, read_twice, through_a_view])
def test_it_computes_the_same(change):
    module = traced(change)
    x = torch.randn(2, 3, 5, 5) * 4
    with torch.no_grad():
        wanted = module(x.clone())
        make_functional(module)
        assert torch.equal(module(x.clone()), wanted)


def test_a_tensor_that_another_node_reads_stays_written_over():
    graph = fx.Graph()
    made = graph.call_function(ATEN.mul.Tensor, (graph.placeholder("x"), 2.0))
    written = graph.call_function(ATEN.relu_.default, (made,))
    graph.output(graph.call_function(ATEN.sub.Tensor, (made, written)))
    module = fx.GraphModule(nn.Module(), graph)
    make_functional(module)
    assert in_place(module) == ["relu_"]
    assert module(torch.tensor([-1.0, 1.0])).tolist() == [0.0, 0.0]


def test_what_was_given_to_the_network_is_never_taken_for_its_own():
    graph = fx.Graph()
    graph.output(graph.call_function(ATEN.relu_.default, (graph.placeholder("x"),)))
    module = fx.GraphModule(nn.Module(), graph)
    make_functional(module)
    x = torch.tensor([-1.0, 1.0])
    module(x)
    assert in_place(module) == ["relu_"]
    assert x.tolist() == [0.0, 1.0]
