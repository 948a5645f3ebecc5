"""Small networks that are awkward to export, one habit of real code each."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its name everywhere

from fdda_deploy.exporters.float_onnx import FloatGraph, export_float
from fdda_deploy.pipeline.network import trace
from fdda_deploy.pipeline.quantization.fold import fold_batch_norm

SHAPE = (3, 8, 8)


def seeded(kind: type[nn.Module], *arguments: int) -> nn.Module:
    """Returns a network in eval mode whose BatchNorms do something, the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        module = kind(*arguments).eval()
        for child in module.modules():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(child.weight, 0.5, 1.5)
                nn.init.uniform_(child.bias, -0.5, 0.5)
                nn.init.uniform_(child.running_mean, -0.5, 0.5)
                nn.init.uniform_(child.running_var, 0.5, 2.0)
        return module


def exported(module: nn.Module, shape: tuple[int, int, int] = SHAPE) -> FloatGraph:
    return export_float(fold_batch_norm(trace(module, shape)), shape)


@functools.cache
def graph_of(kind: type[nn.Module], *arguments: int) -> FloatGraph:
    """Returns the export of a seeded network, made once: tests read it and leave it as it is."""
    return exported(seeded(kind, *arguments))


def images(count: int = 4, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    """Stem, a block with an identity skip, a block with a projection, functional relu."""

    def __init__(self, projection_first: bool = False) -> None:
        super().__init__()
        self.projection_first = projection_first
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, 2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.down = nn.Conv2d(8, 16, 1, 2, bias=False)
        self.down_bn = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_bn(self.stem(x)))
        x = F.relu(x + self.bn1(self.conv1(x)))
        if self.projection_first:
            skip = self.down_bn(self.down(x))
            x = F.relu(self.bn2(self.conv2(x)) + skip)
        else:
            main = self.bn2(self.conv2(x))
            x = F.relu(self.down_bn(self.down(x)) + main)
        return self.fc(x.mean((2, 3)))


class Depthwise(nn.Module):
    """An inverted residual: expand, depthwise, project, add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand = nn.Conv2d(8, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        y = F.relu6(self.depthwise(F.relu6(self.expand(x))))
        return self.head((x + self.project(y)).mean((2, 3)))


class DepthwiseFirst(nn.Module):
    """A block that opens with a depthwise filter and adds its input back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.mix = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.mix(F.relu(self.depthwise(x)))
        return self.head(x.mean((2, 3)))


class PadSliceConcat(nn.Module):
    """TensorFlow's one-sided pad, a channel split, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2)
        self.left = nn.Conv2d(4, 6, 1)
        self.right = nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(F.pad(x, (0, 1, 0, 1))))
        x = torch.cat([self.left(x[:, :4]), self.right(x[:, 4:])], dim=1)
        return self.head(F.hardswish(x).mean((2, 3)))


class SharedModule(nn.Module):
    """One convolution called twice, and in-place operators."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        for _ in range(2):
            y = self.block(x)
            y += x
            x = self.act(y)
        return self.head(x.mean((2, 3)))


class FunctionalNorm(nn.Module):
    """BatchNorm called as a function, with buffers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.register_buffer("mean", torch.linspace(-1, 1, 8))
        self.register_buffer("var", torch.linspace(0.5, 2, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(self.conv(x), self.mean, self.var)
        return self.head(F.relu(x).mean((2, 3)))


class PreActivation(nn.Module):
    """BatchNorm before the convolution: nothing to fold into."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.conv(F.relu(self.bn(x)))).mean((2, 3)))


class FreshlyMade(nn.Module):
    """Zero biases, two equal layers, equal BatchNorm statistics: what equality must not merge."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.bn = nn.BatchNorm1d(8)
        self.fc1 = nn.Linear(8, 8)
        self.fc2 = nn.Linear(8, 8)
        for layer in (self.conv1, self.conv2, self.fc1, self.fc2):
            nn.init.zeros_(layer.bias)
        for layer in (self.fc1, self.fc2):
            nn.init.eye_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv2(F.relu(self.conv1(x))).mean((2, 3)))
        return self.fc2(self.fc1(x))


class SaidTwice(nn.Module):
    """The same expression written twice, as hand-made pre-activation blocks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.skip = nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv(F.relu(x)) + self.skip(F.relu(x))
        kept = self.drop(y)
        return self.head(F.relu(self.conv(kept) + torch.sigmoid(kept)).mean((2, 3)))


class ComputedWeights(nn.Module):
    """A standardized convolution weight, and a matrix used plain and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.matrix = nn.Parameter(torch.randn(6, 8))
        self.unused = nn.Parameter(torch.ones(3))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        w = self.conv.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        x = F.relu(F.conv2d(x, w, self.conv.bias).mean((2, 3)))
        return self.head(F.linear(torch.relu(F.linear(x, self.matrix)), self.matrix.t()))


class _Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i1e(x)


class Untranslatable(nn.Module):
    """An operator that ONNX lacks, two modules deep."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.stage = nn.Sequential(nn.ReLU(), _Bessel())

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(self.conv(x)).mean((2, 3))


class Transposed(nn.Module):
    """Upsampling by a transposed convolution, then a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(F.relu(self.stem(x))))
        return self.head(F.relu(self.grouped(x)).mean((2, 3)))


class WideHead(nn.Module):
    """A linear layer long enough for blocks of INT4, and one applied to tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, padding=1)
        self.mix = nn.Linear(16, 16)
        self.wide = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.relu(self.stem(x)).flatten(2).transpose(1, 2)
        tokens = F.relu(self.mix(tokens))
        return self.wide(tokens.flatten(1))


EVERY_NETWORK = (
    Residual,
    Depthwise,
    DepthwiseFirst,
    PadSliceConcat,
    SharedModule,
    FunctionalNorm,
    PreActivation,
    FreshlyMade,
    SaidTwice,
    ComputedWeights,
    Transposed,
    WideHead,
)
