"""A tiny network of the user's own, as a file with weights beside it, and images for it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from fdda_deploy.config import BuildConfig, config_from

SOURCE = '''
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.first = nn.BatchNorm2d(channels)
        self.point = nn.Conv2d(channels, channels, 1, bias=False)
        self.second = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.second(self.point(torch.relu(self.first(self.depthwise(x))))))

class Tiny(nn.Module):
    input_size, mean, std = (3, 16, 16), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(self.blocks(x).mean((2, 3)))

def tiny():
    return Tiny()

class Gained(Tiny):
    """Parameters that ONNX folds into constants, and a BatchNorm that nothing can fold."""

    def __init__(self):
        super().__init__()
        self.gain, self.last = nn.Parameter(torch.full((16,), 0.3)), nn.BatchNorm2d(16)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.last(self.blocks(x) * self.gain.exp().reshape(1, -1, 1, 1)))
        return self.head(x.mean((2, 3)))

def gained():
    return Gained()

class Plain(nn.Module):
    """No BatchNorm at all."""

    input_size = (3, 16, 16)

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(torch.relu(self.stem(x)).mean((2, 3)))

def plain():
    return Plain()

class Odd(nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, x):
        return torch.special.bessel_j0(x)

class Unwritable(Tiny):
    def __init__(self):
        super().__init__()
        self.blocks[1].point = nn.Sequential(self.blocks[1].point, Odd())

def unwritable():
    return Unwritable()
'''


def write_networks(folder: Path) -> Path:
    """Writes the file of networks, and NAME.safetensors beside it with seeded, settled weights."""
    path = folder / "nets.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("road_nets", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("tiny", "gained", "plain", "unwritable"):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(3)
            network = getattr(module, name)().train()
            network.head.weight.mul_(4)  # answers as sure as a trained network's
            for _ in range(10):
                network(2 * torch.randn(16, 3, 16, 16))
        save_file(network.state_dict(), folder / f"{name}.safetensors")
    return path


def write_images(path: Path, count: int, *, labelled: bool = True) -> Path:
    """Writes an .npz of noise images, four classes in turn."""
    x = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    np.savez(path, x=x, **({"y": np.arange(count) % 4} if labelled else {}))
    return path


def short(out: Path, model: str = "digits", **changes: Any) -> BuildConfig:
    """The configuration of a build that takes seconds."""
    flags: dict[str, Any] = {
        "model": model,
        "num_steps": 8,
        "finetune_steps": 4,
        "num_images": 16,
        "eval_limit": 100,
        "threads": 1,
        "device": "cpu",
        "out": str(out),
    }
    overrides = changes.pop("overrides", None)
    flags |= {"effort": "fast", "finetune": True}  # reconstruction has tests of its own
    config = config_from(None, {**flags, **changes})
    if overrides:
        config.synthesis.overrides.update(overrides)
    return config


def own(folder: Path, out: Path, name: str = "tiny", **changes: Any) -> BuildConfig:
    """The same for a network of `write_networks`."""
    weights = str(folder / f"{name}.safetensors")
    return short(out, f"{folder / 'nets.py'}:{name}", weights=weights, **changes)
