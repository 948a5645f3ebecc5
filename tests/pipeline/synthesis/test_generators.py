from __future__ import annotations

import pytest
import torch
from torch import nn

from fdda_deploy.errors import ModelError
from fdda_deploy.pipeline.synthesis.generators import (
    ClassConditionalBatchNorm,
    ClassConditionalGenerator,
    UpsampledConv,
)


@pytest.mark.parametrize(
    "shape", [(3, 32, 32), (1, 8, 8), (3, 30, 45), (4, 9, 64), (3, 33, 34)], ids=str
)
@pytest.mark.parametrize("num_classes", [1, 10])
def test_generator_makes_images_of_any_shape(shape: tuple[int, int, int], num_classes: int) -> None:
    generator = ClassConditionalGenerator(shape, num_classes, 20)
    images = generator(torch.randn(4, 20), torch.arange(4) % num_classes)
    assert images.shape == (4, *shape)
    assert images.dtype == torch.float32


def test_training_images_are_normalized_per_channel() -> None:
    generator = ClassConditionalGenerator((3, 18, 16), 5)
    images = generator(torch.randn(8, 100), torch.arange(8) % 5)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.var((0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)


def test_layers_are_the_papers() -> None:
    generator = ClassConditionalGenerator((3, 32, 32), 10)
    shapes = {name: tuple(p.shape) for name, p in generator.named_parameters() if p.dim() > 1}
    assert shapes == {
        "linear.weight": (128 * 8 * 8, 100),
        "norm0.scale.weight": (10, 128),
        "norm0.shift.weight": (10, 128),
        "up1.conv.weight": (128, 128, 3, 3),
        "norm1.scale.weight": (10, 128),
        "norm1.shift.weight": (10, 128),
        "up2.conv.weight": (64, 128, 3, 3),
        "norm2.scale.weight": (10, 64),
        "norm2.shift.weight": (10, 64),
        "to_image.weight": (3, 64, 3, 3),
    }


def test_fused_upsampling_equals_upsampling_then_convolution() -> None:
    fused, plain = UpsampledConv(5, 7), UpsampledConv(5, 7, fused=False)
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(2, 5, 6, 3)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-5)
    gradients = []
    for module in (fused, plain):
        module(x).square().sum().backward()
        gradients.append(module.conv.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_class_conditional_batch_norm_scales_each_image_by_its_class() -> None:
    module, plain = ClassConditionalBatchNorm(2, 3), nn.BatchNorm2d(2, affine=False)
    x, labels = torch.randn(4, 2, 3, 3), torch.tensor([0, 2, 2, 1])
    torch.testing.assert_close(module(x, labels), plain(x))
    with torch.no_grad():
        module.scale.weight[2] = 3.0
        module.shift.weight[2] = -1.0
    changed = module(x, labels)
    torch.testing.assert_close(changed[1:3], 3 * plain(x)[1:3] - 1)
    torch.testing.assert_close(changed[[0, 3]], plain(x)[[0, 3]])


def test_images_under_eight_pixels_are_refused() -> None:
    with pytest.raises(ModelError, match=r"7x32 pixels are too small.*--input-size"):
        ClassConditionalGenerator((3, 7, 32), 10)
