"""BatchNorm folding: the folded network is the network, whatever shares what."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own convention

from fdda_deploy.pipeline.network import BATCH_NORM, trace
from fdda_deploy.pipeline.quantization.fold import fold_batch_norm

SHAPE = (4, 7, 7)


class Chain(nn.Module):
    """One layer, one BatchNorm, whatever they are."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.layer(x)))


class Flat(Chain):
    """The same on vectors."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x.mean((2, 3))))


class TwoNorms(nn.Module):
    """One convolution on two paths with a BatchNorm each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[0](self.conv(x)) + F.relu(self.norms[1](self.conv(-x)))


class SharedPair(nn.Module):
    """One convolution with its BatchNorm, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = F.relu(self.norm(self.conv(x)))
        return x


class OnceWithNormOnceBare(nn.Module):
    """One convolution, on one path with a BatchNorm and on the other without."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv(x * 2)


class TwoReaders(nn.Module):
    """A convolution whose output the BatchNorm shares with an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.norm(y)


class NormFirst(nn.Module):
    """Pre-activation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.norm(x)))


class NormOfNorm(nn.Module):
    """Two BatchNorms in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)
        self.first = nn.BatchNorm2d(4)
        self.second = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.conv(x)))


FOLDED = {
    "conv": lambda: Chain(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)),
    "conv without bias": lambda: Chain(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
    "same padding": lambda: Chain(nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6)),
    "grouped conv": lambda: Chain(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
    "depthwise conv": lambda: Chain(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)),
    "transposed conv": lambda: Chain(nn.ConvTranspose2d(4, 6, 3, 2), nn.BatchNorm2d(6)),
    "plain norm": lambda: Chain(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)),
    "large epsilon": lambda: Chain(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.5)),
    "linear": lambda: Flat(nn.Linear(4, 6), nn.BatchNorm1d(6)),
    "linear without bias": lambda: Flat(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)),
    "shared conv, two norms": TwoNorms,
    "shared conv and norm": SharedPair,
    "norm on one of two calls": OnceWithNormOnceBare,
}
KEPT = {
    "grouped transposed conv": (
        lambda: Chain(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
        1,
    ),
    "two readers": (TwoReaders, 1),
    "norm first": (NormFirst, 1),
    "norm of a norm": (NormOfNorm, 1),
    "no norm": (lambda: Chain(nn.Conv2d(4, 6, 3), nn.Identity()), 0),
}


def trained(make) -> nn.Module:
    """A network whose BatchNorms have moved away from the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        module = make().eval()
        for child in module.modules():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(child.running_mean, -2, 2)
                nn.init.uniform_(child.running_var, 0.2, 3)
                if child.affine:
                    nn.init.uniform_(child.weight, -2, 2)
                    nn.init.uniform_(child.bias, -2, 2)
        return module


def norms_in(graph_module: torch.fx.GraphModule) -> int:
    return sum(node.target is BATCH_NORM for node in graph_module.graph.nodes)


def assert_same(module: nn.Module, folded: nn.Module) -> None:
    for count in (1, 5):
        x = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            torch.testing.assert_close(folded(x), module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", FOLDED.values(), ids=FOLDED)
def test_folded_network_computes_the_same_without_batch_norm(make):
    module = trained(make)
    folded = fold_batch_norm(trace(module, SHAPE))
    assert norms_in(folded) == 0
    assert_same(module, folded)


@pytest.mark.parametrize(("make", "kept"), KEPT.values(), ids=KEPT)
def test_what_cannot_fold_stays_and_computes_the_same(make, kept):
    module = trained(make)
    folded = fold_batch_norm(trace(module, SHAPE))
    assert norms_in(folded) == kept
    assert_same(module, folded)


def test_original_network_is_left_as_it_is():
    module = trained(SharedPair)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fold_batch_norm(trace(module, SHAPE))
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (FOLDED["conv without bias"], {"layer.weight", "layer.bias"}),
        (SharedPair, {"conv.weight", "conv.bias"}),
        (
            TwoNorms,
            {f"conv_folded{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")},
        ),
        (
            OnceWithNormOnceBare,
            {"conv_folded0.weight", "conv_folded0.bias", "conv.weight", "conv.bias"},
        ),
    ],
    ids=["one", "shared pair", "two norms", "norm on one call"],
)
def test_parameters_keep_their_names_and_shared_ones_split_only_when_they_must(make, names):
    folded = fold_batch_norm(trace(trained(make), SHAPE))
    read = {str(n.target) for n in folded.graph.nodes if n.op == "get_attr"}
    assert read == names


def test_folding_is_the_formula_in_double_precision():
    module = trained(FOLDED["conv"])
    folded = fold_batch_norm(trace(module, SHAPE))
    norm, conv = module.norm, module.layer
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = conv.weight.double() * factor.reshape(-1, 1, 1, 1)
    bias = (conv.bias.double() - norm.running_mean.double()) * factor + norm.bias.double()
    torch.testing.assert_close(
        folded.get_parameter("layer.weight"), weight.float(), rtol=2e-7, atol=0
    )
    torch.testing.assert_close(
        folded.get_parameter("layer.bias"), bias.float(), rtol=1e-6, atol=1e-7
    )
