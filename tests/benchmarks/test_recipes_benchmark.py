"""benchmarks/recipes.py: whose images a row has, what is still to measure, what the table says."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import recipes

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
ROWS = json.loads((RESULTS / "recipes.json").read_text(encoding="utf-8"))["rows"]


def row(recipe: str, scheme: str, seed: int, drop: float) -> dict[str, object]:
    interval = {"mean": drop, "low": drop - 1, "high": drop + 1}
    key = {"network": "n", "recipe": recipe, "scheme": scheme, "images": 128, "seed": seed}
    return {**key, "drop": interval, "n": 1000}


def test_noise_is_standard_normal_to_the_network_as_far_as_pixels_reach():
    pixels = recipes.noise_images(40, 32, seed=0)
    assert pixels.shape == (40, 32, 32, 3)
    assert pixels.dtype == np.uint8
    seen = (pixels / 255 - np.array(recipes.MEAN)) / np.array(recipes.STD)
    assert np.median(seen, axis=(0, 1, 2)) == pytest.approx([0, 0, 0], abs=0.05)
    quartiles = np.quantile(seen, [0.25, 0.75])
    assert quartiles == pytest.approx([-0.674, 0.674], abs=0.05)


def test_a_seed_draws_the_same_noise_and_another_seed_other_noise():
    first = recipes.noise_images(2, 8, seed=1)
    assert np.array_equal(first, recipes.noise_images(2, 8, seed=1))
    assert not np.array_equal(first, recipes.noise_images(2, 8, seed=2))


def test_every_class_gives_one_image_and_the_seed_says_which():
    labels = np.arange(50, dtype=np.uint8) % 10
    places = recipes.one_per_class(labels, seed=3)
    assert labels[places].tolist() == list(range(10))
    assert places.tolist() != recipes.one_per_class(labels, seed=4).tolist()


def test_a_job_loses_its_calibration_images_and_nothing_else():
    job = ["net", "--calib-data", "a", "--weights", "w", "--calib-limit", "64", "--eval-data", "b"]
    assert recipes.without_images(job) == ["net", "--weights", "w", "--eval-data", "b"]


def test_recipes_without_data_are_given_none(tmp_path):
    for recipe in ("zeroq", "gdfq", "dsg", "lrq", "genie"):
        options = recipes.image_options(recipe, 16, 0, tmp_path)
        assert options == ["--recipe", recipe, "--num-images", "16"]
    assert list(tmp_path.iterdir()) == []


def test_photographs_are_given_to_the_recipes_that_take_real_images():
    def options(recipe: str) -> list[str]:
        return recipes.image_options(recipe, 64, 0, Path("unused"), "mobilenet_v2")

    assert options("genie") == ["--recipe", "genie", "--num-images", "64"]
    photographs = ["--calib-data", str(recipes.SHARED / "images/imagenet_calib.tar")]
    assert options("fdda") == ["--recipe", "fdda", "--num-images", "64", *photographs]
    assert options("real") == ["--recipe", "none", *photographs, "--calib-limit", "64"]
    with pytest.raises(ValueError, match="noise is made at 32 px alone"):
        options("none")


def test_noise_is_written_for_the_row_without_a_recipe(tmp_path):
    options = recipes.image_options("none", 16, 0, tmp_path)
    assert options[:3] == ["--recipe", "none", "--calib-data"]
    with np.load(options[3]) as data:
        assert data["x"].shape == (16, 32, 32, 3)


@pytest.mark.shared_data
def test_fdda_gets_one_real_image_per_class(tmp_path):
    if not recipes.CIFAR.is_file():
        pytest.skip("the data folder is not beside the checkout")
    options = recipes.image_options("fdda", 16, 0, tmp_path)
    assert options[:4] == ["--recipe", "fdda", "--num-images", "16"]
    with np.load(options[5]) as data:
        assert data["y"].tolist() == list(range(10))
        assert data["x"].shape == (10, 32, 32, 3)


def test_only_what_is_not_there_yet_is_measured():
    there = [row("fdda", "w8a8", 0, 0.5)]
    same = {key: there[0][key] for key in ("network", "recipe", "scheme", "images", "seed")}
    other = {**same, "images": 512}
    assert recipes.missing(there, [same, other]) == [other]


def test_one_seed_has_the_interval_of_its_images_and_more_have_their_range():
    assert recipes.drop_of([row("fdda", "w4a4", 0, 2.0)]) == (2.0, 1.0, 3.0)
    seeds = [row("fdda", "w4a4", seed, drop) for seed, drop in enumerate((1.0, 2.0, 6.0))]
    assert recipes.drop_of(seeds) == (3.0, 1.0, 6.0)


def test_the_table_says_what_its_interval_is():
    rows = [row("genie", "w4a4", 0, 2.0), *(row("fdda", "w4a4", seed, 1.0) for seed in (0, 1))]
    lines = recipes.table(rows)
    assert len(lines) == 2
    assert "95 % of images" in lines[0]
    assert "range of 2 seeds" in lines[1]


def test_a_plot_shows_every_recipe_and_is_the_same_each_time(tmp_path):
    rows = [row("fdda", "w4a4", 0, 2.0), row("genie", "w8a8", 0, 0.1)]
    for name in ("a.svg", "b.svg"):
        recipes.draw(rows, tmp_path / name)
    first = (tmp_path / "a.svg").read_bytes()
    assert first == (tmp_path / "b.svg").read_bytes()
    assert ET.fromstring(first).tag.endswith("svg")  # noqa: S314  # our own file


def test_committed_rows_differ_in_their_images_alone():
    assert {(r["network"], r["effort"], r["target"], r["n"]) for r in ROWS} == {
        ("cifar_resnet20", "fast", "trt", 1000)
    }
    for found in ROWS:
        drop = found["float_top1"] - found["quantized_top1"]
        assert found["drop"]["mean"] == pytest.approx(drop, abs=0.01)
        assert found["recipe"] in recipes.RECIPES
    keys = [(r["recipe"], r["scheme"], r["images"], r["seed"]) for r in ROWS]
    assert len(keys) == len(set(keys))


def test_committed_rows_have_the_images_that_their_recipe_has():
    for found in ROWS:
        real, made = found["calibrated_on"]["real"], found["calibrated_on"]["synthetic"]
        if found.get("images_read_back"):  # which counted as real ones once
            assert real + made == found["images"]
            continue
        wanted = {"none": (found["images"], 0), "real": (found["images"], 0)}
        few = 10 if found["recipe"] == "fdda" else 0
        assert (real, made) == wanted.get(found["recipe"], (few, found["images"])), found["recipe"]
