"""What channels cost together, and how much of it a few images can tell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fdda_deploy.pipeline.quantization.output_curvature import DAMPING, POSITIONS, OutputCurvature


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def curvature(grads: Tensor) -> Tensor:
    found = OutputCurvature()
    for part in torch.split(grads, 4):
        found.add(part)
    result = found.result()
    assert result is not None
    return result


def off_diagonal(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix - torch.diag(matrix.diagonal())))


def test_images_that_agree_say_all_of_it():
    image = drawn(1, 5, 3)
    found = curvature(image.expand(8, -1, -1))
    wanted = 8 * image[0].mT @ image[0] / image.square().sum()
    damping = DAMPING * wanted.diagonal().mean() * torch.eye(3)
    torch.testing.assert_close(found, wanted + damping)


def test_channels_that_have_nothing_in_common_are_left_alone():
    many, few = curvature(drawn(4000, 2, 12)), curvature(drawn(6, 2, 12))
    for found in (many, few):
        assert off_diagonal(found) < 0.1 * float(found.diagonal().square().sum().sqrt())
    plain = drawn(6, 2, 12).reshape(6, -1)
    plain = (plain / plain.norm(dim=1, keepdim=True)).reshape(-1, 12)
    assert off_diagonal(plain.mT @ plain) > 5 * off_diagonal(few)


def test_what_is_in_common_comes_through_noise_with_more_images():
    common = torch.tensor([1.0, 1.0, 0.0, -1.0])

    def share(count: int, seed: int) -> float:
        signs, noise = drawn(count, 1, 1, seed=seed).sign(), drawn(count, 1, 4, seed=seed + 1)
        found = curvature(signs * common + 0.8 * noise)
        return float(found[0, 1] / found.diagonal()[:2].mean())

    many, few = share(2000, 0), [share(8, seed) for seed in range(0, 60, 2)]
    assert 0.5 < many < 0.65  # 1 / (1 + 0.8^2) = 0.61 without the scaling of images
    assert 0.1 < sum(few) / len(few) < 0.9 * many


def test_the_size_of_an_images_gradient_does_not_matter():
    grads = drawn(8, 3, 4)
    sizes = torch.logspace(-12, 12, 8)[:, None, None]
    torch.testing.assert_close(curvature(grads * sizes), curvature(grads))


def test_images_that_say_nothing_count_nothing():
    grads = drawn(4, 3, 4)
    with_more = torch.cat([grads, torch.zeros(5, 3, 4)])
    torch.testing.assert_close(curvature(with_more), curvature(grads))


@pytest.mark.parametrize("grads", [torch.zeros(4, 3, 2), torch.full((4, 3, 2), torch.nan)])
def test_without_a_gradient_there_is_none(grads: Tensor):
    found = OutputCurvature()
    found.add(grads)
    assert found.result() is None
    assert OutputCurvature().result() is None


def test_one_image_says_only_how_much_each_channel_counts():
    found = curvature(drawn(1, 3, 4))
    assert off_diagonal(found) == 0
    assert bool((found.diagonal() > 0).all())


def test_a_channel_that_counts_little_is_not_given_up_for_others():
    grads = drawn(64, 2, 1) * torch.tensor([0.02, 1.0, -1.0, 1.0]) + 1e-3 * drawn(64, 2, 4, seed=1)
    found = curvature(grads)
    assert float((found[0, 1:] / found[0, 0]).abs().max()) < 3  # 50 without damping


def test_positions_are_thinned_evenly():
    grads = drawn(3, 4 * POSITIONS, 5)
    torch.testing.assert_close(curvature(grads), curvature(grads[:, ::4]))
