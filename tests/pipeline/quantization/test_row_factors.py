"""Factors that cost nothing: what the network computes stays, what one scale rounds gets even."""

from __future__ import annotations

import copy

import pytest
import torch
from equalize_networks import Inverted, Residual, batches, channel_ranges, uneven
from torch import Tensor, fx, nn

from fdda_deploy.pipeline.quantization.channel_groups import is_depthwise, is_layer, parameter_of
from fdda_deploy.pipeline.quantization.equalize import equalize


def depthwise_layers(module: fx.GraphModule) -> list[str]:
    return [n.name for n in module.graph.nodes if is_layer(n) and is_depthwise(n)]


def logits(module: fx.GraphModule) -> Tensor:
    with torch.no_grad():
        return torch.cat([module(batch) for batch in batches()])


def rows(module: fx.GraphModule, layer: fx.Node) -> Tensor:
    return parameter_of(module, layer, 1).detach().abs().flatten(1).amax(dim=1)


def makers(module: fx.GraphModule) -> list[fx.Node]:
    """The layers whose outputs depthwise layers alone read."""
    found = []
    for node in module.graph.nodes:
        if is_layer(node) and is_depthwise(node):
            source = node.args[0]
            while not is_layer(source):
                source = source.args[0]
            found.append(source)
    return found


def rescaled(kind: nn.Module | type[nn.Module]) -> tuple[fx.GraphModule, fx.GraphModule]:
    module = uneven(kind)
    copied = copy.deepcopy(module)
    equalize(copied, batches(), dense=0.0, floats=depthwise_layers(module))
    return module, copied


@pytest.mark.parametrize("act", [nn.ReLU6, nn.ReLU])
def test_the_network_computes_what_it_did(act: type[nn.Module]) -> None:
    before, after = rescaled(lambda: Inverted(act))
    torch.testing.assert_close(logits(after), logits(before), rtol=1e-4, atol=1e-4)


def test_without_a_clip_all_rows_end_with_one_size() -> None:
    before, after = rescaled(lambda: Inverted(nn.ReLU))
    for maker_before, maker in zip(makers(before), makers(after), strict=True):
        assert rows(before, maker_before).std() > 0
        sizes = rows(after, maker)
        torch.testing.assert_close(sizes, sizes.amax().expand_as(sizes))


def test_a_clipped_channel_keeps_its_row_and_the_largest_does_not_grow() -> None:
    before, after = rescaled(Inverted)
    changed = 0
    for maker_before, maker in zip(makers(before), makers(after), strict=True):
        old, new = rows(before, maker_before), rows(after, maker)
        assert new.amax() <= old.amax() * (1 + 1e-6)
        assert (new / new.amax()).log().mean() >= (old / old.amax()).log().mean()
        changed += int((new != old).sum())
    assert changed > 0


def test_layers_that_read_integers_are_equalised_as_ever() -> None:
    module = uneven(Inverted)
    usual, named = copy.deepcopy(module), copy.deepcopy(module)
    equalize(usual, batches())
    equalize(named, batches(), floats=["no such layer"], alike={})
    for one, other in zip(usual.parameters(), named.parameters(), strict=True):
        assert torch.equal(one, other)


def ranges(module: fx.GraphModule, names: list[str]) -> list[float]:
    found = channel_ranges(module, batches())
    return [float(found[name].max()) for name in names]


def test_tensors_that_share_a_scale_are_brought_to_one_range_for_nothing() -> None:
    module = uneven(Residual)
    inner = [
        node.name
        for node in module.graph.nodes
        if "relu" in node.name
        and not any(map(is_residual, node.users))
        and any(map(is_layer, node.users))
    ]
    assert len(inner) == 2
    copied = copy.deepcopy(module)
    equalize(copied, batches(), dense=0.0, depthwise=0.0, alike=dict.fromkeys(inner, "6x4x4"))
    one, other = ranges(module, inner)
    assert one != pytest.approx(other, rel=0.05)
    after = ranges(copied, inner)
    assert after == pytest.approx([max(one, other)] * 2, rel=1e-4)
    torch.testing.assert_close(logits(copied), logits(module), rtol=1e-4, atol=1e-4)


def is_residual(node: fx.Node) -> bool:
    return "add" in node.name
