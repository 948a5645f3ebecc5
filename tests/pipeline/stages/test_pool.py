"""The pool: how many images set ranges, and that no step trains on those that judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.data import ImageSet, open_images
from fdda_deploy.pipeline.preprocessing import Preprocessing
from fdda_deploy.pipeline.stages.images import ENOUGH_REAL, MOST_CALIBRATION_IMAGES, Pool

PREPROCESSING = Preprocessing(height=8, width=8, channels=1, mean=(0.5,), std=(0.25,))


def given_images(folder: Path, count: int, **more: np.ndarray) -> ImageSet:
    """Image number i has the pixel i % 256 at (0, 0) and i // 256 at (0, 1); its label is i % 5."""
    x = np.zeros((count, 8, 8), np.uint8)
    x[:, 0, 0], x[:, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    np.savez(folder / "real.npz", x=x, y=np.arange(count) % 5, **more)
    return open_images(str(folder / "real.npz"), PREPROCESSING, num_classes=5)


def synthetic_images(count: int) -> tuple[Tensor, Tensor]:
    """Image number i is filled with 1000 + i; its label is i % 5."""
    images = (1000.0 + torch.arange(count)).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    return images, torch.arange(count) % 5


def numbers(images: Tensor) -> list[int]:
    """Which images these are: real ones from 0, synthetic ones from 1000."""
    found = []
    for image in images:
        low, high = ((float(v) * 0.25 + 0.5) * 255 for v in image[0, 0, :2])
        made = int(image[0, 0, 0])
        found.append(made if made >= 1000 else round(high) * 256 + round(low))
    return found


def pool(folder: Path, real: int, made: int, seed: int = 0) -> Pool:
    return Pool(
        given_images(folder, real) if real else None, synthetic_images(made) if made else None, seed
    )


@pytest.mark.parametrize(
    ("real", "made", "asked", "wanted"),
    [
        (10, 40, "auto", (10, 40)),
        (ENOUGH_REAL, 40, "auto", (ENOUGH_REAL, 0)),
        (10, 0, "auto", (10, 0)),
        (0, 40, "auto", (0, 40)),
        (ENOUGH_REAL, 40, "both", (ENOUGH_REAL, 40)),
        (10, 40, "real", (10, 0)),
        (10, 40, "synthetic", (0, 40)),
        (10, 0, "both", (10, 0)),
        (700, 600, "both", (MOST_CALIBRATION_IMAGES["small"], MOST_CALIBRATION_IMAGES["small"])),
    ],
)
def test_counts_follow_what_is_asked_and_there(
    tmp_path: Path, real: int, made: int, asked: str, wanted: tuple[int, int]
) -> None:
    found = pool(tmp_path, real, made)
    assert found.calibration_counts(asked) == wanted
    batches = list(found.calibration_batches(wanted, 32))
    assert all(1 <= len(batch) <= 32 for batch in batches)
    seen = numbers(torch.cat(batches))
    assert (sum(n < 1000 for n in seen), sum(n >= 1000 for n in seen)) == wanted
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ("given", "made", "asked", "wanted"),
    [
        (40, 0, "auto", (40, 0)),
        (40, 0, "synthetic", (40, 0)),
        (ENOUGH_REAL, 40, "auto", (ENOUGH_REAL, 40)),  # no number of them is enough
        (10, 40, "both", (10, 40)),
    ],
)
def test_given_images_that_were_synthesized_count_as_synthetic(
    tmp_path: Path, given: int, made: int, asked: str, wanted: tuple[int, int]
) -> None:
    images = given_images(tmp_path, given, recipe=np.str_("genie"))
    found = Pool(images, synthetic_images(made) if made else None, 0)
    assert found.calibration_counts(asked) == wanted
    assert found.by_kind(wanted) == (0, sum(wanted))
    assert pool(tmp_path, given, made).by_kind(wanted) == wanted
    with pytest.raises(ConfigError, match=r"real: .*Recipe genie made those of --calib"):
        Pool(images, None, 0).calibration_counts("real")


def test_of_large_images_fewer_set_the_ranges():
    wide = torch.zeros(1, 1, 1, 1).expand(600, 1, 65, 65)
    found = Pool(None, (wide, torch.zeros(600, dtype=torch.int64)), 0)
    assert found.calibration_counts("auto") == (0, MOST_CALIBRATION_IMAGES["large"])


@pytest.mark.parametrize(("real", "made", "asked"), [(10, 0, "synthetic"), (0, 40, "real")])
def test_a_kind_that_is_not_there_is_refused(
    tmp_path: Path, real: int, made: int, asked: str
) -> None:
    with pytest.raises(ConfigError, match=f"--calibrate-on {asked}: there is no such image"):
        pool(tmp_path, real, made).calibration_counts(asked)


def test_images_of_one_kind_are_not_copied(tmp_path: Path):
    found = pool(tmp_path, 0, 60)
    assert found.made is not None
    assert found.sample(20).data_ptr() == found.made[0].data_ptr()
    assert found.held_out().untyped_storage().data_ptr() == found.made[0].data_ptr()


@pytest.mark.parametrize(("real", "made"), [(60, 0), (0, 60), (60, 45), (10, 60), (60, 10)])
def test_no_step_trains_on_an_image_that_judges(tmp_path: Path, real: int, made: int) -> None:
    found = pool(tmp_path, real, made)
    assert found.holds_out
    judges = set(numbers(found.held_out()))
    assert judges
    generator = torch.Generator().manual_seed(0)
    drawn: set[int] = set()
    for draw in found.draws():
        for _ in range(30):
            drawn |= set(numbers(draw(16, generator)[0]))
    assert not drawn & judges
    assert len(drawn) + len(judges) == real + made  # all the others are trained on


@pytest.mark.parametrize(("real", "made"), [(60, 0), (0, 60), (60, 45), (10, 60), (60, 10)])
@pytest.mark.parametrize("count", [20, 1000])
def test_nothing_is_rounded_on_an_image_that_judges(
    tmp_path: Path, real: int, made: int, count: int
) -> None:
    found = pool(tmp_path, real, made)
    judges = set(numbers(found.held_out()))
    sampled = numbers(found.sample(count))
    assert not set(sampled) & judges
    assert len(set(sampled)) == len(sampled) == min(count, real + made - len(judges))


def test_a_fifth_is_held_out_and_sixty_four_at_most(tmp_path: Path) -> None:
    assert len(pool(tmp_path, 40, 0).held_out()) == 8
    assert len(pool(tmp_path, 700, 0).held_out()) == 64
    assert len(pool(tmp_path, 40, 600).held_out()) == 8 + 64


def test_too_few_to_hold_any_out_judge_and_train_alike_and_it_says_so(tmp_path: Path) -> None:
    found = pool(tmp_path, 10, 16)
    assert not found.holds_out
    assert sorted(numbers(found.held_out())) == [*range(10), *range(1000, 1016)]


def test_labels_belong_to_their_images(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    for draw in pool(tmp_path, 60, 45).draws():
        images, labels = draw(50, generator)
        assert (images.shape, labels.dtype) == ((50, 1, 8, 8), torch.int64)
        wanted = [n % 1000 % 5 for n in numbers(images)]
        assert labels.tolist() == wanted


def test_the_seed_decides_every_choice(tmp_path: Path) -> None:
    def choices(seed: int) -> list[list[int]]:
        found = pool(tmp_path, 600, 0, seed)
        generator = torch.Generator().manual_seed(0)
        calibration = torch.cat(list(found.calibration_batches((512, 0), 64)))
        parts = [calibration, found.sample(20), found.held_out(), found.draws()[0](8, generator)[0]]
        return [numbers(part) for part in parts]

    assert choices(1) == choices(1)
    assert all(one != other for one, other in zip(choices(1), choices(2), strict=True))


def test_a_sample_has_real_images_first_and_fills_up_with_synthetic_ones(tmp_path: Path) -> None:
    found = pool(tmp_path, 6, 40)
    seen = numbers(found.sample(16))
    assert sorted(seen[:6]) == list(range(6))
    assert seen[6:] == list(range(1000, 1010))
    assert len(pool(tmp_path, 60, 40).sample(16)) == 16
    assert len(pool(tmp_path, 6, 4).sample(16)) == 10


def test_images_without_classes_are_drawn_with_label_minus_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "flat.npz", x=np.zeros((30, 8, 8), np.uint8))
    found = Pool(open_images(str(tmp_path / "flat.npz"), PREPROCESSING), None, 0)
    assert set(found.draws()[0](5, torch.Generator())[1].tolist()) == {-1}


@pytest.mark.parametrize(
    ("counts", "most", "wanted"),
    [
        ((256, 0), 64, (64, 0)),
        ((0, 256), 64, (0, 64)),
        ((256, 256), 64, (32, 32)),
        ((10, 256), 64, (2, 62)),
        ((10, 20), 64, (10, 20)),
    ],
)
def test_fewer_images_keep_their_proportion(
    counts: tuple[int, int], most: int, wanted: tuple[int, int]
):
    assert Pool.fewer(counts, most) == wanted
