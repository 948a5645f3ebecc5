from __future__ import annotations

import pytest
import torch

from fdda_deploy.pipeline.synthesis.recipes import recipe_named
from fdda_deploy.pipeline.synthesis.sources import (
    GeneratedSource,
    LatentSource,
    PixelSource,
    normal_of,
    seed_of,
    source_for,
)

SHAPE = (3, 8, 8)
RANDOM = torch.Generator()


def test_image_draws_the_same_numbers_however_the_set_is_divided() -> None:
    whole = normal_of(7, range(8), SHAPE)
    parts = torch.cat([normal_of(7, range(3), SHAPE), normal_of(7, range(3, 8), SHAPE)])
    assert torch.equal(whole, parts)
    assert len({float(row.sum()) for row in whole}) == 8
    assert abs(float(whole.mean())) < 0.1
    assert float(whole.std()) == pytest.approx(1.0, abs=0.1)


def test_first_index_has_the_seed_itself() -> None:
    assert seed_of(5, 0) == 5
    assert len({seed_of(5, index) for index in range(1000)}) == 1000


def test_pixels_stay_within_what_a_file_can_store() -> None:
    bounds = (torch.tensor([-1.0, -0.5, 0.0]), torch.tensor([1.0, 0.5, 0.25]))
    source = PixelSource(recipe_named("zeroq"), SHAPE, range(4), 0, bounds)
    with torch.no_grad():
        source.pixels.mul_(9)
    source.settle()
    images = source.harvest(torch.zeros(4), RANDOM)
    assert images.amin((0, 2, 3)).tolist() == [-1.0, -0.5, 0.0]
    assert images.amax((0, 2, 3)).tolist() == [1.0, 0.5, 0.25]


def test_latent_and_generator_have_their_own_rates() -> None:
    recipe = recipe_named("genie", {"width": 8})
    source = LatentSource(recipe, SHAPE, range(5), 0, fused=True)
    (latent, z_rate), (generator, rate) = source.rates()
    assert ([p.shape for p in latent], z_rate, rate) == ([(5, 256)], 0.1, 0.01)
    assert {id(p) for p in source.parameters()} == {id(p) for p in latent + generator}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fdda", GeneratedSource),
        ("lrq", GeneratedSource),
        ("genie", LatentSource),
        ("zeroq", PixelSource),
        ("dsg", PixelSource),
    ],
)
def test_recipe_decides_the_source(name: str, kind: type) -> None:
    recipe = recipe_named(name, {"width": 8})
    source = source_for(recipe, SHAPE, 3, range(4), 0, bounds=None, fused=True)
    assert type(source) is kind
    images = source.images((torch.zeros(4, dtype=torch.int64),), RANDOM)
    assert images.shape == (4, *SHAPE)
    images.square().sum().backward()
    trained = [p for group, _ in source.rates() for p in group]
    assert all(p.grad is not None for p in trained)
