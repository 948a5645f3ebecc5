"""Augmentation: crops and flips keep shape and range and follow the seed."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_networks import images as random_images

from fdda_deploy.pipeline.quantization.augmentation import augmented


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["crop-flip", "crop"]),
    st.floats(0.05, 1.0),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)),
    st.integers(0, 2**31),
)
def test_augmented_images_keep_shape_and_range_and_follow_the_seed(
    mode: str, min_crop: float, shape: tuple[int, ...], seed: int
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    one, two = (augmented(x, torch.Generator().manual_seed(seed), mode, min_crop) for _ in "12")
    assert one.shape == x.shape
    assert torch.equal(one, two)
    assert float(one.min()) >= float(x.min()) - 1e-5
    assert float(one.max()) <= float(x.max()) + 1e-5


def test_a_full_crop_is_the_image_or_its_mirror_image() -> None:
    x = random_images(64)
    whole = augmented(x, torch.Generator().manual_seed(0), "crop", 1.0)
    assert torch.allclose(whole, x, atol=1e-5)
    flipped = augmented(x, torch.Generator().manual_seed(0), "crop-flip", 1.0)
    same = torch.isclose(flipped, x, atol=1e-5).flatten(1).all(1)
    mirrored = torch.isclose(flipped, x.flip(3), atol=1e-5).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 16 < int(mirrored.sum()) < 48


def test_without_augmentation_images_are_left_alone() -> None:
    x = random_images(2)
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert augmented(x, generator, "none", 0.6) is x
    assert torch.equal(generator.get_state(), state)


def test_a_crop_keeps_at_least_the_share_it_is_told() -> None:
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64).repeat(200, 1, 1, 1)
    cropped = augmented(ramp, torch.Generator().manual_seed(0), "crop", 0.6)
    width = (cropped[:, 0, 0, -1] - cropped[:, 0, 0, 0]).numpy()
    assert 0.57 < width.min() < 0.65
    assert 0.95 < width.max() <= 1.0
