"""Equalization for few bits: a channel's rarest values are not worth their steps."""

from __future__ import annotations

import copy

import torch
from equalize_networks import Inverted, Multilayer, batches, uneven
from quant_networks import activations_of
from torch import Tensor, fx

from fdda_deploy.pipeline.quantization.clipping import worthwhile_clips
from fdda_deploy.pipeline.quantization.equalize import MOST, equalize


def worth(graph: fx.GraphModule, name: str) -> Tensor:
    """Where each channel is best clipped at 4 bits."""
    return worthwhile_clips(graph, batches(), 4)[name]


def equalized(graph: fx.GraphModule, given: list[Tensor], dense: float = 1.0) -> fx.GraphModule:
    copied = copy.deepcopy(graph)
    equalize(copied, given, dense=dense, clips=worthwhile_clips(graph, batches(), 4))
    return copied


def test_channels_come_to_one_worth_instead_of_one_maximum():
    graph = uneven(Multilayer)
    before = worth(graph, "relu")
    after = worth(equalized(graph, batches()), "relu")
    alive = before > before.max() / MOST
    assert alive.sum() > 3
    wanted = before.max().expand(int(alive.sum()))
    torch.testing.assert_close(after[alive], wanted, rtol=1e-2, atol=0)  # samples have eight bits


def test_the_function_stays_where_nothing_clips():
    graph, x = uneven(Multilayer), torch.cat(batches())
    with torch.no_grad():
        wanted, found = graph(x), equalized(graph, batches())(x)
    assert (wanted - found).abs().max() < 2e-5 * wanted.abs().max()


def test_under_a_clip_what_exceeds_a_channels_worth_is_cut_off():
    graph, x = uneven(Inverted), torch.cat(batches())
    limit = worth(graph, "hardtanh")
    maximum = activations_of(graph, x)["hardtanh"].amax((0, 2, 3))
    assert bool((limit < 0.9 * maximum).any())
    factors = 6 / limit
    after = activations_of(equalized(graph, batches()), x)["hardtanh"]
    alive = limit > 6 / MOST
    wanted = activations_of(graph, x)["hardtanh"] * factors.reshape(-1, 1, 1)
    torch.testing.assert_close(after[:, alive], wanted.clamp_max(6)[:, alive], rtol=1e-3, atol=1e-4)


def test_a_tensor_without_clips_is_scaled_by_its_maximum():
    graph = uneven(Inverted)
    usual, given = copy.deepcopy(graph), copy.deepcopy(graph)
    equalize(usual, batches(), dense=1.0)
    equalize(given, batches(), dense=1.0, clips={"no node": torch.ones(1)})
    for name, parameter in usual.named_parameters():
        assert torch.equal(parameter, given.get_parameter(name))


def test_every_image_counts_alike_however_batches_are_cut():
    graph, (first, second) = uneven(Inverted), batches()
    x = torch.cat([first, second])
    uneven_cut = equalized(graph, [x[:1], x[1:]])
    together = equalized(graph, [x])
    for name, parameter in uneven_cut.named_parameters():
        torch.testing.assert_close(parameter, together.get_parameter(name), rtol=1e-4, atol=1e-6)
