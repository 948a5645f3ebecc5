"""Channel groups: which tensors are tied, and which are held by an operator that is not linear."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from equalize_networks import SHAPE, Inverted, batches, uneven
from torch import Tensor, fx, nn
from torch.nn.functional import conv2d

from fdda_deploy.pipeline.network import graph_module_from, trace
from fdda_deploy.pipeline.quantization.channel_groups import (
    ChannelGroup,
    clip_bounds,
    find_channel_groups,
)
from fdda_deploy.pipeline.quantization.equalize import equalize

Forward = Callable[["Three", Tensor], Tensor]


class Three(nn.Module):
    """Two convolutions of 8 channels and a linear layer, joined by what the test puts between."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.multiplied = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.norm, self.constant = nn.BatchNorm2d(8), nn.Parameter(torch.ones(8, 1, 1))
        self.tokens, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def through(between: Callable[[Tensor], Tensor]) -> Forward:
    """``one``, what stands between, ``two``."""
    return lambda net, x: net.two(between(net.one(x)))


def graph_of(forward: Forward) -> fx.GraphModule:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return graph_module_from(trace(Three(forward), SHAPE))


def groups_of(graph: fx.GraphModule, num_images: int = 16) -> list[ChannelGroup]:
    shapes: dict[str, torch.Size] = {}

    class Walk(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                shapes[n.name] = result.shape
            return result

    with torch.no_grad():
        Walk(graph).run(torch.cat(batches())[:num_images])
    return find_channel_groups(graph, shapes)


def names(nodes: tuple[fx.Node, ...]) -> list[str]:
    return [node.name for node in nodes]


HELD: dict[str, Forward] = {
    "network output": lambda net, x: net.one(x),
    "network input": lambda net, x: net.one(torch.relu(x)).mean((1, 2, 3)),
    "sigmoid": through(torch.sigmoid),
    "constant added": lambda net, x: net.two(net.one(x) + net.constant),
    "number added": through(lambda x: x + 1),
    "product": through(lambda x: x * x),
    "concatenation": through(lambda x: torch.cat([x[:, :4], x[:, 4:]], 1)),
    "channels swapped": through(lambda x: x.flip(1)),
    "view over channels": through(lambda x: x.reshape(-1, 4, 16, 8).reshape(-1, 8, 8, 8)),
    "mean over channels": through(lambda x: x.mean(1).unsqueeze(-1)),
    "mean over channels from behind": through(lambda x: x.mean(-3).unsqueeze(-1)),
    "mean of all": lambda net, x: net.two(torch.relu(net.one(x)) - net.one(x).mean()),
    "clip from below 0": through(lambda x: nn.functional.hardtanh(x, -1, 1)),
    "clip from above 0": through(lambda x: x.clamp(0.5, 6.0)),
    "upper bound alone": through(lambda x: x.clamp(max=6.0)),
    "batch norm": lambda net, x: net.two(net.norm(net.one(x))),
    "four groups": lambda net, x: net.grouped(net.one(x)),
    "two outputs a channel": lambda net, x: net.multiplied(net.one(x)),
    "channels behind": lambda net, x: net.tokens(net.one(x).permute(0, 2, 3, 1)).mean((1, 2)),
    "three axes": lambda net, x: net.tokens(torch.relu(net.one(x).flatten(2)[:, :, :8])).mean(1),
    "weight used twice": lambda net, x: net.two(torch.relu(net.two(torch.relu(net.one(x))))),
    "weight used elsewhere": lambda net, x: net.two(net.one(x)) * net.two.weight.mean(),
    "bias used elsewhere": lambda net, x: net.two(net.one(x)) * net.one.bias[0],
    "bias of two layers": lambda net, x: net.two(conv2d(x, net.one.weight, net.two.bias)),
    "computed weight": lambda net, x: conv2d(net.one(x), net.two.weight.abs()),
    "computed bias": lambda net, x: net.two(conv2d(x, net.one.weight, net.one.bias * 2)),
}


@pytest.mark.parametrize("forward", HELD.values(), ids=HELD.keys())
def test_nothing_is_rescaled_where_an_operator_holds_it(forward):
    graph = graph_of(forward)
    assert groups_of(graph) == []
    copied = copy.deepcopy(graph)
    assert equalize(copied, batches(), dense=1.0).num_groups == 0
    before = dict(graph.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in copied.named_parameters())


HANDED_ON: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "relu": torch.relu,
    "relu in place": torch.relu_,
    "clamp at 0": lambda x: x.clamp(min=0),
    "leaky relu": lambda x: nn.functional.leaky_relu(x, 0.2),
    "relu6": nn.functional.relu6,
    "hardtanh from 0": lambda x: nn.functional.hardtanh(x, 0, 2),
    "clamp between": lambda x: x.clamp(0.0, 3.0),
    "dropout": lambda x: nn.functional.dropout(x, training=False),
    "max pooling": lambda x: torch.max_pool2d(x, 2),
    "average pooling": lambda x: torch.nn.functional.avg_pool2d(x, 2),
    "mean kept": lambda x: x.mean((-1, -2), keepdim=True),
    "sum with itself": lambda x: x + x,
    "sum with a weight": lambda x: torch.add(x, torch.relu(x), alpha=2),
    "difference": lambda x: torch.relu(x) - x,
    "view of pixels": lambda x: x.reshape(-1, 8, 4, 16),
    "means spread": lambda x: x + x.mean((2, 3), keepdim=True),
}


@pytest.mark.parametrize("between", HANDED_ON.values(), ids=HANDED_ON.keys())
def test_a_factor_passes_what_is_positively_homogeneous(between):
    graph = graph_of(through(between))
    (group,) = groups_of(graph)
    assert names(group.producers) == ["conv2d"]
    assert names(group.consumers) == ["conv2d_1"]
    copied = copy.deepcopy(graph)
    assert equalize(copied, batches(), dense=1.0).num_groups == 1
    x = torch.cat(batches())
    with torch.no_grad():
        torch.testing.assert_close(copied(x), graph(x), rtol=1e-4, atol=1e-5)


def test_a_shortcut_ties_all_that_it_joins():
    first, *others = groups_of(uneven(Inverted))
    assert names(first.producers) == ["conv2d", "conv2d_3"]
    assert names(first.consumers) == ["conv2d_1", "conv2d_4"]
    assert "add" in names(first.tensors)
    assert first.clips == ()
    assert [names(group.producers) for group in others] == [
        ["conv2d_1"],
        ["conv2d_2"],
        ["conv2d_4"],
        ["conv2d_5"],
        ["conv2d_6"],
    ]
    assert [[upper for _, upper in group.clips] for group in others] == [[6.0]] * 4 + [[]]


def test_a_sum_that_aligns_channels_with_other_axes_holds_them():
    graph = graph_of(through(lambda x: x + x))
    add = next(node for node in graph.graph.nodes if node.name == "add")
    layer = add.args[0]
    with graph.graph.inserting_before(add):
        means = graph.graph.call_function(torch.ops.aten.mean.dim, (layer, [3]))
    add.args = (layer, means)  # the batch of 8 meets the channels: equal leading axes all the same
    graph.recompile()
    assert groups_of(graph, num_images=8) == []


def test_parameters_of_two_names_and_one_memory_are_shared():
    graph = graph_of(lambda net, x: net.two(torch.relu(net.one(x))))
    assert len(groups_of(graph)) == 1
    graph.one.bias = graph.two.bias
    assert groups_of(graph) == []


@pytest.mark.parametrize(
    ("operator", "wanted"),
    [
        (nn.functional.relu6, (0.0, 6.0)),
        (nn.functional.hardtanh, (-1.0, 1.0)),
        (lambda x: x.clamp(min=1), (1.0, math.inf)),
        (lambda x: x.clamp(max=2), (-math.inf, 2.0)),
        (torch.relu, None),
    ],
    ids=["relu6", "hardtanh", "clamp below", "clamp above", "relu"],
)
def test_bounds_of_a_clip(operator, wanted):
    graph = graph_of(through(operator))
    found = [clip_bounds(node) for node in graph.graph.nodes if node.op == "call_function"]
    assert [bounds for bounds in found if bounds is not None] == (
        [] if wanted is None else [wanted]
    )
