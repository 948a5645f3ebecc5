from __future__ import annotations

import pytest
import torch

from fdda_deploy.pipeline.synthesis.augmentation import augmented, low_passed, shifted
from fdda_deploy.pipeline.synthesis.recipes import recipe_named


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_low_pass_keeps_flat_images_and_quiets_noise(sigma: float) -> None:
    flat = torch.full((2, 3, 9, 11), 0.7)
    torch.testing.assert_close(low_passed(flat, sigma), flat)
    noise = torch.randn(4, 3, 32, 32, generator=random())
    assert float(low_passed(noise, sigma).std()) < 0.75 * float(noise.std())


def test_low_pass_is_a_gaussian() -> None:
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1
    blurred = low_passed(point, 1.5)[0, 0]
    x = torch.arange(-10, 11).float()
    wanted = torch.exp(-(x[:, None] ** 2 + x**2) / (2 * 1.5**2))
    torch.testing.assert_close(blurred, wanted / wanted.sum(), atol=1e-3, rtol=0)


def test_nothing_asked_changes_nothing() -> None:
    images = torch.randn(2, 3, 8, 8)
    assert augmented(images, recipe_named("zeroq"), random()) is images


def test_flips_turn_some_images_and_leave_others() -> None:
    images = torch.randn(32, 3, 8, 8)
    seen = augmented(images, recipe_named("zeroq", {"flip": True}), random())
    turned = (seen == images.flip(3)).flatten(1).all(1)
    kept = (seen == images).flatten(1).all(1)
    assert bool((turned ^ kept).all())
    assert 4 < int(turned.sum()) < 28


@pytest.mark.parametrize("size", [1, 2, 8])
def test_shift_moves_the_batch_with_mirrored_edges(size: int) -> None:
    images = torch.arange(float(size * size)).view(1, 1, size, size)
    draws = random(1)
    seen = [shifted(images, 2, draws) for _ in range(30)]
    assert {tuple(x.shape) for x in seen} == {(1, 1, size, size)}
    distinct = {tuple(x.flatten().tolist()) for x in seen}
    assert len(distinct) == 1 if size == 1 else len(distinct) > 2
    assert all(set(x.flatten().tolist()) <= set(images.flatten().tolist()) for x in seen)
