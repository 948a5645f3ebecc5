"""The networks of the engine table, by name, in eval mode."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn

SHARED = Path(__file__).parents[2] / "shared" / "data"
NETWORKS = (
    "cifar_resnet20",
    "mobilenet_v1_075",
    "mobilenet_v2",
    "resnet18",
    "regnet_x_400mf",
    "efficientnet_b0",
    "resnet50",
    "convnext_tiny",
    "vit_b_16",
)
OWN = ("cifar_resnet20", "mobilenet_v1_075")
SETTLED = ("efficientnet_b0",)
"""With random weights each squeeze-and-excitation halves the signal, down to below FP16's range."""


def network_of(name: str) -> tuple[nn.Module, tuple[int, int, int], str]:
    """Returns a network in eval mode, its input shape, and where its weights are from."""
    torch.manual_seed(0)
    if name in OWN:
        spec = importlib.util.spec_from_file_location("networks", SHARED / "networks.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        network: nn.Module = getattr(module, name)()
    else:
        import torchvision.models

        network = torchvision.models.get_model(name)
    _wake(network)
    weights, origin = SHARED / "weights" / f"{name}.pth", "random weights"
    if weights.exists():
        network.load_state_dict(torch.load(weights, weights_only=True))
        origin = "trained weights"
    pixels = 32 if name.startswith("cifar") else 224
    if name in SETTLED:
        origin += ", BatchNorm settled on noise"
        _settle(network, pixels)
    return network.eval(), (3, pixels, pixels), origin


@torch.no_grad()
def _wake(network: nn.Module) -> None:
    """Gives values to what torchvision starts at 0 or 1e-6: logits of 0 compare nothing."""
    for name, parameter in network.named_parameters():
        if name.endswith("layer_scale"):
            parameter.fill_(0.1)
        elif parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)


@torch.no_grad()
def _settle(network: nn.Module, pixels: int) -> None:
    """Gives BatchNorm the statistics of eight random images, as training would have."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
    images = torch.randn(8, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))
    network.train()(images)
