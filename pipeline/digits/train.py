"""Trains the embedded network: ``python -m fdda_deploy.pipeline.digits.train --out FILE``.

The constants are a first guess, checked once on 300 held-out training images (at 80 epochs; 60 are
kept for speed). The test images are read once, after training, for the header's figure. Another
thread count rounds differently and gives another network: 99.66 % shipped, 99.33 % on one thread.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from fdda_deploy.pipeline.digits.network import PIXEL_MEAN, PIXEL_STD, DigitsResNet
from fdda_deploy.pipeline.digits.split import Split, digit_images, split_digest
from fdda_deploy.pipeline.durable import atomic_write
from fdda_deploy.pipeline.network import Progress

NUM_EPOCHS = 60
BATCH_SIZE = 60
LEARNING_RATE = 0.1
"""Peak of a one-cycle schedule: a linear rise over a fifth of the steps, then a cosine to zero."""
WEIGHT_DECAY = 5e-4
MAX_SHIFT = 0.08
"""Augmentation: shift as a fraction of the image, about one cell of the 8x8 scan ..."""
MAX_TURN = math.radians(10)
"""... turn in either direction, in radians ..."""
MAX_ZOOM = 0.1
"""... and zoom in or out."""


def train(seed: int = 0, progress: Progress | None = None) -> DigitsResNet:
    """Returns the network trained on the 1200 training images, in eval mode.

    The same seed on the same machine and thread count gives the same weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pixels, labels = normalizable("train")
        network = DigitsResNet().train()
        _optimise(network, pixels, labels, progress)
        estimate_batch_norm(network, normalized(pixels))
    return network.eval()


def normalizable(split: Split) -> tuple[Tensor, Tensor]:
    """Returns one side of the split as pixels ``(n, 1, 32, 32)`` in [0, 1] and labels ``(n,)``."""
    images, labels = digit_images(split)
    return torch.tensor(images).unsqueeze(1).float() / 255, torch.tensor(labels)


def normalized(pixels: Tensor) -> Tensor:
    """Returns pixels in [0, 1] as the network wants them: mean 0, deviation 1."""
    return (pixels - PIXEL_MEAN) / PIXEL_STD


def augmented(pixels: Tensor) -> Tensor:
    """Returns each image shifted, turned and zoomed a little; paper-black outside its borders."""
    n = len(pixels)
    turn, zoom = _uniform(n, MAX_TURN), 1 + _uniform(n, MAX_ZOOM)
    cos, sin = zoom * torch.cos(turn), zoom * torch.sin(turn)
    # grid_sample counts from -1 to 1: a fraction of the image is twice that here.
    shift_x, shift_y = _uniform(n, 2 * MAX_SHIFT), _uniform(n, 2 * MAX_SHIFT)
    rows = [torch.stack([cos, -sin, shift_x], 1), torch.stack([sin, cos, shift_y], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, align_corners=False)


@torch.no_grad()
def estimate_batch_norm(network: nn.Module, images: Tensor) -> None:
    """Sets every BatchNorm layer's running statistics to those of ``images``, in one pass.

    Training leaves a moving average over augmented batches and changing weights; synthesis aims
    at these statistics, so they should be those of real digits under the final weights.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = layers[0].momentum
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average: of the one batch that follows, exactly
    network.train()(images)
    for layer in layers:
        layer.momentum = usual


@torch.no_grad()
def top1(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Returns the percentage of images whose largest logit is the label's."""
    return 100 * float((network(images).argmax(1) == labels).double().mean())


def save(network: DigitsResNet, out: Path, seed: int, test_top1: float) -> None:
    """Writes the checkpoint with its provenance in the header; atomic."""
    from safetensors.torch import save as bytes_from_tensors

    header = {
        "seed": str(seed),
        "split_digest": split_digest(),
        "test_top1": f"{test_top1:.4f}",
        "torch": torch.__version__,
    }
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    atomic_write(out, bytes_from_tensors(tensors, metadata=header))


def main(arguments: list[str] | None = None) -> None:
    """Trains, measures once on the test images, and writes ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    network = train(chosen.seed, lambda done, total, text: _say(f"\r{text} {done}/{total}"))
    pixels, labels = normalizable("test")
    test_top1 = top1(network, normalized(pixels), labels)
    save(network, chosen.out, chosen.seed, test_top1)
    _say(f"\n{chosen.out}: top-1 {test_top1:.2f} % of {len(labels)} test images\n")


def _optimise(
    network: nn.Module, pixels: Tensor, labels: Tensor, progress: Progress | None
) -> None:
    steps_per_epoch = len(pixels) // BATCH_SIZE
    optimizer = torch.optim.SGD(
        network.parameters(), LEARNING_RATE, 0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, NUM_EPOCHS * steps_per_epoch, pct_start=0.2
    )
    for epoch in range(NUM_EPOCHS):
        order = torch.randperm(len(pixels))
        for batch in torch.split(order[: steps_per_epoch * BATCH_SIZE], BATCH_SIZE):
            loss = functional.cross_entropy(
                network(normalized(augmented(pixels[batch]))), labels[batch]
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            schedule.step()
        if progress is not None:
            progress(epoch + 1, NUM_EPOCHS, f"loss {loss.item():.3f}, epoch")


def _uniform(n: int, limit: float) -> Tensor:
    return (torch.rand(n) * 2 - 1) * limit


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


if __name__ == "__main__":
    main()
