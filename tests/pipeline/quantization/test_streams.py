"""Two streams through a network: the values of both graphs, wherever they wait."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from quant_networks import CPU, Plain, float_graph
from rounded_networks import FIT, calibrated, integers, rounded

from fdda_deploy.pipeline.quantization.blocks import find_blocks
from fdda_deploy.pipeline.quantization.streams import Streams


@torch.no_grad()
@pytest.mark.parametrize("limit", [0, 2**30], ids=["on disk", "in memory"])
def test_the_ends_are_the_logits_of_both_networks(limit: int) -> None:
    network, module = calibrated(Plain, "w4a8"), float_graph(Plain).module
    with Streams([FIT[:20], FIT[20:]], batch_size=8, device=CPU, limit_bytes=limit) as streams:
        assert streams.num_samples == len(FIT)
        assert all(len(x) <= 8 and torch.equal(x, x_hat) for x, x_hat in streams)
        for block in find_blocks(module):
            streams.advance(block, module, network.graph_module)
        logits, logits_hat = (torch.cat(part) for part in zip(*streams, strict=True))
    assert torch.allclose(logits, module(FIT), atol=1e-5)
    assert torch.allclose(logits_hat, network(FIT), atol=1e-5)
    assert (streams.bytes_spilled > 0) == (limit == 0)


@torch.no_grad()
def test_blocks_join_where_the_value_between_is_too_wide() -> None:
    module = float_graph(Plain).module
    every = find_blocks(module)
    assert len(every) > 1
    whole = 4 * 4 * 8 * 64 * len(FIT)
    for limit, wanted in ((2**30, len(every)), (whole - 1, 2), (0, 1)):
        with Streams([FIT], batch_size=8, device=CPU, limit_bytes=limit) as streams:
            chain = streams.blocks(module)
        assert len(chain) == wanted
        assert [x for b in chain for x in b.layers] == [x for b in every for x in b.layers]
        assert (chain[0].source, chain[-1].result) == (every[0].source, every[-1].result)
        for block, after in pairwise(chain):
            assert block.result == after.source


def test_spilled_streams_round_as_those_in_memory(tmp_path: Path) -> None:
    found = []
    for limit in (2**30, 10**6):
        network = calibrated(Plain, "w4a8")
        result = rounded(network, Plain, memory_limit_bytes=limit, folder=tmp_path)
        assert (result.bytes_spilled > 0) == (limit == 10**6)
        found.append(integers(network))
    assert found[0] == found[1]
    assert list(tmp_path.iterdir()) == []
