"""Preprocessing: the same pixels as torchvision's transforms, whatever kind of image comes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fdda_deploy.errors import ConfigError, DataError
from fdda_deploy.pipeline import preprocessing as module
from fdda_deploy.pipeline.preprocessing import (
    Preprocessing,
    default_resize,
    normalized_from_uint8,
    pixels_from_image,
    uint8_from_normalized,
)

GREY = {"channels": 1, "mean": (0.5,), "std": (0.25,)}


def noise_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    channels = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    rng = np.random.default_rng(width * 1000 + height)
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


@settings(max_examples=25, deadline=None)
@given(st.integers(5, 90), st.integers(5, 90), st.sampled_from(["bilinear", "bicubic"]))
def test_resize_and_crop_equal_torchvisions(width, height, interpolation):
    from torchvision import transforms

    image = noise_image(width, height)
    chain = transforms.Compose(
        [
            transforms.Resize(40, interpolation=transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(32),
        ]
    )
    ours = pixels_from_image(image, Preprocessing(32, 32, resize=40, interpolation=interpolation))
    if (width, height) == (32, 32):
        np.testing.assert_array_equal(ours, np.asarray(image))
    else:
        np.testing.assert_array_equal(ours, np.asarray(chain(image)))


def test_an_image_of_the_input_size_is_never_resized():
    image = noise_image(48, 32)
    ours = pixels_from_image(image, Preprocessing(32, 48, resize=60))
    np.testing.assert_array_equal(ours, np.asarray(image))


def test_without_resize_an_image_is_squeezed_to_size():
    image = noise_image(50, 20)
    ours = pixels_from_image(image, Preprocessing(32, 32))
    squeezed = image.resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(ours, np.asarray(squeezed))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_colour_mode_becomes_the_networks_channels(mode, channels):
    image = Image.new("I;16", (32, 32), 65535) if mode == "I;16" else Image.new("RGB", (32, 32))
    if mode != "I;16":
        image.paste((255, 255, 255), (0, 0, 32, 32))
        image = image.convert(mode)
    chosen = Preprocessing(32, 32, **(GREY if channels == 1 else {}))
    pixels = pixels_from_image(image, chosen)
    assert pixels.shape == (32, 32, channels)
    assert pixels.min() >= 254  # white stays white, a 16-bit one included


def test_sixteen_bit_grey_keeps_its_shades():
    image = Image.fromarray(np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32))
    pixels = pixels_from_image(image, Preprocessing(32, 32, **GREY))
    np.testing.assert_array_equal(pixels.ravel(), np.arange(0, 65536, 64) >> 8)


def test_a_transparent_palette_is_decoded_without_a_warning():
    buffer = io.BytesIO()
    image = noise_image(32, 32).quantize(16)
    image.save(buffer, "PNG", transparency=bytes(range(0, 256, 16)))
    with Image.open(buffer) as opened:
        assert pixels_from_image(opened, Preprocessing(32, 32)).shape == (32, 32, 3)


def test_exif_orientation_is_applied():
    buffer = io.BytesIO()
    image, exif = noise_image(32, 48), Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    image.save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as opened:
        ours = pixels_from_image(opened, Preprocessing(32, 48))
    np.testing.assert_array_equal(ours, np.rot90(np.asarray(image), -1))


def test_normalized_values_follow_the_formula():
    chosen = Preprocessing(1, 2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    pixels = np.array([[[[0, 51, 255], [255, 102, 0]]]], np.uint8)
    x = normalized_from_uint8(pixels, chosen)
    assert x.shape == (1, 3, 1, 2)
    assert x.dtype == torch.float32
    wanted = [[-0.2, 1.8], [0.0, 0.8], [0.35, -0.15]]
    torch.testing.assert_close(x[0, :, 0], torch.tensor(wanted))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_survives_the_round_trip(channels):
    chosen = Preprocessing(16, 16, **(GREY if channels == 1 else {}))
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(channels, axis=3)
    back = uint8_from_normalized(normalized_from_uint8(values, chosen), chosen)
    np.testing.assert_array_equal(back, values)


def test_what_no_pixel_can_show_is_clamped():
    chosen = Preprocessing(1, 2, **GREY)
    back = uint8_from_normalized(torch.tensor([[[[-9.0, 9.0]]]]), chosen)
    assert back.ravel().tolist() == [0, 255]


def test_huge_images_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"40x40 pixels, more than the 1,000"):
        pixels_from_image(noise_image(40, 40), Preprocessing(8, 8, resize=8))


def test_a_line_of_pixels_cannot_be_blown_up(monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGE_PIXELS", 5000)
    with pytest.raises(DataError, match=r"2000x1 pixels: so narrow"):
        pixels_from_image(noise_image(2000, 1), Preprocessing(8, 8, resize=8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"height": 0}, "input size 0x32"),
        ({"channels": 4}, "input has 4 channels"),
        ({"resize": 16}, "resize 16 is less than the input 32x32"),
        ({"mean": (0.5,)}, "wanted 3 finite values"),
        ({"std": (1.0, 1.0, float("nan"))}, "wanted 3 finite values"),
        ({"std": (1.0, 0.0, 1.0)}, "every value must be above 0"),
        ({"interpolation": "sinc"}, "interpolation 'sinc'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_contradicting_fields_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Preprocessing(**({"height": 32, "width": 32} | fields))


def test_descriptions_tell_the_geometries_apart():
    cropped = Preprocessing(224, 224, resize=256).describe()
    assert cropped.startswith("RGB 224x224, centre crop of shorter side 256 (bilinear)")
    assert "squeezed" in Preprocessing(224, 224).describe()


def test_only_large_inputs_are_cropped_by_default():
    assert [default_resize(side, side) for side in (32, 63, 64, 224, 299)] == [32, 63, 73, 256, 342]
