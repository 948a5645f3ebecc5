"""The embedded network: 14 weighted layers, small enough to ship and to teach with."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

IMAGE_SIZE = 32
"""Height and width in pixels; the 8x8 digits are scaled up by four."""
PIXEL_MEAN = 0.306
"""Mean of the 1200 training images, pixels in [0, 1]."""
PIXEL_STD = 0.324
"""Their standard deviation. With the true mean and deviation, a generator whose last layer
normalises its output (FDDA's does) starts in the network's own range."""
NUM_CLASSES = 10
WEIGHTS_FILE = Path(__file__).with_name("weights.safetensors")
"""The shipped checkpoint; ``python -m fdda_deploy.pipeline.digits.train`` makes it again."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; ``(N, c_in, H, W)`` to ``(N, c_out, H/s, W/s)``."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or c_in != c_out:
            projection = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """Returns relu(shortcut(x) + branch(x))."""
        branch = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(branch + self.shortcut(x))


class DigitsResNet(nn.Module):
    """Residual network for digits: ``(N, 1, 32, 32)`` float32 to logits ``(N, 10)``.

    The first convolution halves the image, since 32 pixels of an 8x8 scan hold no finer detail;
    three stages of two blocks follow, 16, 32 and 64 channels wide.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.stage1 = nn.Sequential(ResidualBlock(16, 16, 1), ResidualBlock(16, 16, 1))
        self.stage2 = nn.Sequential(ResidualBlock(16, 32, 2), ResidualBlock(32, 32, 1))
        self.stage3 = nn.Sequential(ResidualBlock(32, 64, 2), ResidualBlock(64, 64, 1))
        self.classifier = nn.Linear(64, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits ``(N, 10)`` of normalized images ``(N, 1, 32, 32)``."""
        x = functional.relu(self.bn(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits
