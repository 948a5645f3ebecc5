r"""What each way of making calibration images costs in accuracy: recipe by scheme, one quantizer.

    python benchmarks/recipes.py --out benchmarks/results/recipes.json \
        --plot benchmarks/results/recipes.svg --recipe zeroq genie fdda real --scheme w8a8 w4a8
    python benchmarks/recipes.py --out benchmarks/results/no_data.json --recipe genie \
        --network mobilenet_v2 mobilenet_v1_075 --scheme w8a8 w4a8 --num-images 256

Each row is one `fdda-deploy build --effort fast --target trt`: same network, same quantizer, same
test images, so that rows differ in the images alone. ``none`` calibrates on Gaussian noise,
``real`` on as many real images as the recipes make; ``fdda`` has one real image per class besides.
Rows are added to the JSON file that is there; one that is there already is not measured again, and
``code`` says by which version it was.
Needs the data folder beside the checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from main_job import JOBS, SHARED, measured
from numpy.typing import NDArray

from fdda_deploy.pipeline.workspace import code_digest

RECIPES = ["none", "zeroq", "gdfq", "dsg", "lrq", "genie", "fdda", "real"]
SCHEMES = ["w8a8", "w4a8", "w4a4"]
NETWORKS = ["cifar_resnet20", "mobilenet_v2", "mobilenet_v1_075"]
"""The first is measured where none is named. ImageNet's 1000 photographs are one of each class."""
CIFAR = SHARED / "cifar10.npz"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""The CIFAR network's preprocessing, which says what Gaussian noise looks like as pixels."""
NUM_IMAGES = 512
"""Images of a row unless said otherwise: the build's own default at 32 px."""

Row = dict[str, Any]


def noise_images(count: int, side: int, seed: int) -> NDArray[np.uint8]:
    """Returns standard normal network inputs as pixels ``(count, side, side, 3)``."""
    normal = np.random.default_rng(seed).normal(size=(count, side, side, 3))
    pixels = 255 * (normal * np.array(STD) + np.array(MEAN))
    found: NDArray[np.uint8] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return found


def one_per_class(labels: NDArray[np.integer], seed: int) -> NDArray[np.int64]:
    """Returns the places of one image of each class, drawn by ``seed``, in the order of classes."""
    order = np.random.default_rng(seed).permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    places: NDArray[np.int64] = order[first]
    return places


def image_options(
    recipe: str, count: int, seed: int, folder: Path, network: str = NETWORKS[0]
) -> list[str]:
    """Returns the build's options that say where its images come from; writes those it needs.

    Raises:
        ValueError: Noise for a network of photographs.
    """
    if network != NETWORKS[0]:
        return _photograph_options(recipe, count)
    path = folder / f"images-{recipe}-{seed}.npz"
    if recipe == "none":
        np.savez(path, x=noise_images(count, 32, seed))
        return ["--recipe", "none", "--calib-data", str(path)]
    if recipe == "real":
        limit = ["--calib-limit", str(count)]
        return ["--recipe", "none", "--calib-data", f"{CIFAR}#train", *limit]
    made = ["--recipe", recipe, "--num-images", str(count)]
    if recipe != "fdda":
        return made
    with np.load(CIFAR, allow_pickle=False) as data:
        places = one_per_class(data["train_y"], seed)
        np.savez(path, x=data["train_x"][places], y=data["train_y"][places])
    return [*made, "--calib-data", str(path)]


def _photograph_options(recipe: str, count: int) -> list[str]:
    if recipe == "none":
        raise ValueError("noise is made at 32 px alone")
    photographs = ["--calib-data", str(SHARED / "images/imagenet_calib.tar")]
    if recipe == "real":
        return ["--recipe", "none", *photographs, "--calib-limit", str(count)]
    made = ["--recipe", recipe, "--num-images", str(count)]
    return [*made, *photographs] if recipe == "fdda" else made


def without_images(job: Sequence[str]) -> list[str]:
    """Returns a job's arguments less those that give it calibration images."""
    kept, skip = [], False
    for part in job:
        named = part in {"--calib-data", "--calib-limit"}
        if not named and not skip:
            kept.append(part)
        skip = named
    return kept


def missing(rows: Sequence[Row], keys: Sequence[Row]) -> list[Row]:
    """Returns those of ``keys`` that no row has."""
    return [key for key in keys if not any(key.items() <= row.items() for row in rows)]


def table(rows: Sequence[Row]) -> list[str]:
    """Returns a line for each recipe and scheme: the mean drop over seeds, in points.

    With one seed the interval is that of the paired test images; with more, the range of the seeds.
    """
    lines = []
    for recipe in RECIPES:
        for scheme in SCHEMES:
            found = [r for r in rows if (r["recipe"], r["scheme"]) == (recipe, scheme)]
            if not found:
                continue
            drop, low, high = drop_of(found)
            what = "95 % of images" if len(found) == 1 else f"range of {len(found)} seeds"
            lines.append(
                f"{recipe:6} {scheme:5} drop {drop:6.2f} ({low:.2f} to {high:.2f}, {what}), "
                f"n = {found[0]['n']}"
            )
    return lines


def drop_of(rows: Sequence[Row]) -> tuple[float, float, float]:
    """Returns mean, low and high of the drop of one recipe and scheme; see `table`."""
    if len(rows) == 1:
        drop: Mapping[str, float] = rows[0]["drop"]
        return drop["mean"], drop["low"], drop["high"]
    drops = [float(row["drop"]["mean"]) for row in rows]
    return statistics.mean(drops), min(drops), max(drops)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes the drops as an SVG: a panel per scheme, a point with its interval per recipe."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text, and the file small
    mpl.rcParams["svg.hashsalt"] = "recipes"  # the same rows make the same file
    from matplotlib import pyplot

    schemes = [scheme for scheme in SCHEMES if any(row["scheme"] == scheme for row in rows)]
    size = (3.2 * len(schemes) + 0.6, 3)
    figure, axes = pyplot.subplots(1, len(schemes), figsize=size, sharey=True, squeeze=False)
    for axis, scheme in zip(axes[0], schemes, strict=True):
        for place, recipe in enumerate(RECIPES):
            found = [r for r in rows if (r["recipe"], r["scheme"]) == (recipe, scheme)]
            if found:
                mean, low, high = drop_of(found)
                ends = [[mean - low], [high - mean]]
                axis.errorbar([mean], [place], xerr=ends, fmt="o", color="tab:blue", capsize=3)
            else:
                axis.text(0.02, place, "not measured", fontsize=7, va="center", color="gray")
        axis.axvline(0, color="gray", linewidth=0.5)
        axis.set(title=scheme, xlabel="top-1 drop, points")
        axis.set_yticks(range(len(RECIPES)), RECIPES)
        axis.set_ylim(len(RECIPES) - 0.5, -0.5)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Measures what is asked for and not there yet; prints the table, draws the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--network", nargs="*", default=NETWORKS[:1], choices=NETWORKS)
    parser.add_argument("--recipe", nargs="*", default=RECIPES, choices=RECIPES)
    parser.add_argument("--scheme", nargs="*", default=SCHEMES, choices=SCHEMES)
    parser.add_argument("--num-images", type=int, default=NUM_IMAGES)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--keep", type=Path, help="folder of made images: kept, and taken again")
    arguments = parser.parse_args()
    rows: list[Row] = []
    if arguments.out.is_file():
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    wanted: list[Row] = [
        {
            "network": network,
            "recipe": recipe,
            "scheme": scheme,
            "images": arguments.num_images,
            "seed": seed,
        }
        for network in arguments.network
        for seed in arguments.seeds
        for recipe in arguments.recipe
        for scheme in arguments.scheme
    ]
    with tempfile.TemporaryDirectory() as scratch:  # a seed's schemes find its images there
        for key in missing(rows, wanted):
            rows.append(_row(key, Path(scratch), arguments.keep))
            _write(rows, arguments.out)
    rows = [row for row in rows if row["images"] == arguments.num_images]
    for network in arguments.network:
        alike = [row for row in rows if row["network"] == network]
        print(network, *table(alike), sep="\n")
    if arguments.plot is not None and alike:
        draw(alike, arguments.plot)


def _row(key: Row, folder: Path, keep: Path | None) -> Row:
    """Runs one build; the schemes of a recipe share a folder, so its images are made once.

    With ``keep`` they are made once for all code: another quantizer is measured on the same images.
    """
    network, recipe = str(key["network"]), str(key["recipe"])
    count, seed = int(key["images"]), int(key["seed"])
    name = f"{network} on {recipe}"
    kept = None if keep is None else keep / f"{network}-{recipe}-{count}-{seed}.npz"
    if recipe == "fdda":  # it has real images beside those it makes
        kept = None
    read_back = kept is not None and kept.is_file()
    if read_back:
        images = ["--recipe", "none", "--calib-data", str(kept)]
    else:
        images = image_options(recipe, count, seed, folder, network)
    JOBS[name] = [*without_images(JOBS[network]), *images]
    options = ["--target", "trt", "--effort", "fast", "--seed", str(seed), "--quiet"]
    out = folder / f"{network}-{recipe}-{seed}"
    row = measured(name, str(key["scheme"]), out, options)
    made = out / "synthetic" / "images.npz"
    if kept is not None and made.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, kept)
    more = {"images_read_back": True} if read_back else {}
    return {**row, **key, **more, "effort": "fast", "code": code_digest()[:12]}


def _write(rows: Sequence[Row], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".part")
    document = {"machine": {"cpus": os.cpu_count()}, "rows": list(rows)}
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(out)


if __name__ == "__main__":
    main()
