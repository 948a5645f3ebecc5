"""CUDA graphs of the float network: when one is made, when not, and that nothing else changes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from synthesis_runs import SHAPE
from torch import Tensor

from fdda_deploy.pipeline.network import StatisticsNetwork
from fdda_deploy.pipeline.synthesis import graphed
from fdda_deploy.pipeline.synthesis.graphed import EAGER_STEPS, Forward, GraphedNetwork
from fdda_deploy.pipeline.synthesis.recipes import recipe_named
from fdda_deploy.pipeline.synthesis.rewiring import SeeingNetwork, Seen
from fdda_deploy.pipeline.synthesis.synthesizer import Synthesizer

CPU = torch.device("cpu")


class Recorder:
    """Captures as CUDA does, as far as a CPU can: a shape, and from then on that shape alone."""

    def __init__(self) -> None:
        self.captured: list[int] = []
        self.replays = 0

    def __call__(self, forward: Forward, x: Tensor) -> Forward:
        self.captured.append(len(x))

        def replay(batch: Tensor) -> tuple[Tensor, ...]:
            assert batch.shape == x.shape
            self.replays += 1
            return forward(batch)

        return replay


def images(count: int = 4) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(count))


def shown(network: GraphedNetwork, count: int = 4) -> Seen:
    return network(images(count).requires_grad_())


def test_a_shape_is_captured_once_it_has_come_often_enough(tiny: StatisticsNetwork) -> None:
    recorder = Recorder()
    network = GraphedNetwork(SeeingNetwork(tiny), recorder)
    for _ in range(EAGER_STEPS):
        shown(network)
    assert recorder.captured == []
    for _ in range(4):
        shown(network)
    assert (recorder.captured, recorder.replays) == ([4], 4)


def test_only_so_many_shapes_are_captured(tiny: StatisticsNetwork) -> None:
    recorder = Recorder()
    network = GraphedNetwork(SeeingNetwork(tiny), recorder)
    for count in (2, 3, 4):
        for _ in range(EAGER_STEPS + 1):
            shown(network, count)
    assert recorder.captured == [2, 3]


def test_a_replay_shows_what_the_network_shows(tiny: StatisticsNetwork) -> None:
    plain = SeeingNetwork(tiny)
    network = GraphedNetwork(plain, Recorder())
    for _ in range(EAGER_STEPS + 1):
        found = shown(network)
    wanted = plain(images())
    assert found.features is not None
    pairs = zip(
        (found.logits, *found.bn_inputs, found.features),
        (wanted.logits, *wanted.bn_inputs, wanted.features),
        strict=True,
    )
    assert all(torch.equal(got, want) for got, want in pairs)


def test_what_needs_no_gradient_is_not_captured(tiny: StatisticsNetwork) -> None:
    recorder = Recorder()
    network = GraphedNetwork(SeeingNetwork(tiny), recorder)
    for _ in range(EAGER_STEPS + 2):
        network(images())
        with torch.no_grad():
            shown(network)
    assert recorder.captured == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would capture it")
def test_where_cuda_cannot_capture_the_run_goes_on_and_says_why(tiny: StatisticsNetwork) -> None:
    network = GraphedNetwork(SeeingNetwork(tiny))  # CUDA's own capture, which fails here
    found = [shown(network).logits.detach() for _ in range(EAGER_STEPS + 2)]
    assert network.trouble is not None
    assert network.trouble.startswith("CUDA graphs are not used: ")
    assert "\n" not in network.trouble
    assert all(torch.equal(logits, found[0]) for logits in found)


def test_training_through_graphs_has_the_same_losses(
    tiny: StatisticsNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(graphed, "captured", recorder)
    recipe = dataclasses.replace(recipe_named("gdfq"), random_batch=4)

    def losses(*, through_graphs: bool) -> list[float]:
        made_by = Synthesizer(
            tiny,
            recipe,
            image_shape=SHAPE,
            num_classes=3,
            centers=None,
            device=CPU,
            seed=0,
            autocast=False,
        )
        if through_graphs:
            made_by.graphed = GraphedNetwork(made_by.seeing)
        return [float(made_by.step().losses["total"]) for _ in range(EAGER_STEPS + 3)]

    assert losses(through_graphs=True) == losses(through_graphs=False)
    assert recorder.replays == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU to capture on")
def test_a_cuda_graph_gives_the_gradients_of_the_network(tiny: StatisticsNetwork) -> None:
    device = torch.device("cuda")
    plain = SeeingNetwork(tiny.to(device))
    network = GraphedNetwork(plain)
    gradients = []
    for see in (*[network] * (EAGER_STEPS + 2), plain):
        x = images().to(device).requires_grad_()
        sum(value.square().mean() for value in see(x).bn_inputs).backward()
        gradients.append(x.grad)
    assert network.trouble is None
    torch.testing.assert_close(gradients[-2], gradients[-1])
