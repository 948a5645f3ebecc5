"""Effort in the quantize stage: what runs, what is kept, and what leaves the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from road_networks import own

from fdda_deploy.pipeline.quantization.closed_form import round_network
from fdda_deploy.pipeline.quantization.equalize import equalize
from fdda_deploy.pipeline.run import build
from fdda_deploy.pipeline.stages import quantizing, rounding
from fdda_deploy.pipeline.stages.context import RunContext


def record_of(networks: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """The rounding part of the quantize stage's record."""
    found: dict[str, Any] = {}

    def spy(*args: Any) -> Any:
        found.update(rounding.rounded(*args))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantizing, "rounded", spy)
        settings = {"recipe": "none", "calib_data": str(networks / "calib.npz"), "finetune": False}
        build(own(networks, out, **{**settings, **changes}), until="quantize")
    return found


def test_fast_rounds_in_closed_form_and_held_out_images_get_closer(
    networks: Path, tmp_path: Path
) -> None:
    found = record_of(networks, tmp_path, effort="fast", scheme="w3a8")
    assert (found["effort"], found["images"], found["reconstruction"]) == ("fast", 32, None)
    assert found["closed_form"]["kept"]
    assert found["closed_form"]["after"] < found["closed_form"]["before"]
    assert found["closed_form"]["left"] == []


@pytest.mark.parametrize(("scheme", "images"), [("w8a8", 24), ("w4a8", 32)])
def test_eight_bit_weights_of_large_images_are_rounded_on_fewer(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, images: int
) -> None:
    monkeypatch.setattr(RunContext, "small_images", property(lambda _context: False))
    monkeypatch.setattr(rounding, "ENOUGH_FOR_8_BITS", 24)
    found = record_of(networks, tmp_path, effort="fast", scheme=scheme)
    assert found["images"] == images


def test_best_reconstructs_from_there(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {**rounding.RECONSTRUCTION}
    short["best"] = type(short["best"])(num_steps=5, batch_size=16)
    monkeypatch.setattr(rounding, "RECONSTRUCTION", short)
    found = record_of(networks, tmp_path, effort="best", scheme="w3a4")
    part = found["reconstruction"]
    assert part["settings"]["num_steps"] == 5
    assert part["blocks"] >= part["blocks_kept"] >= 0
    assert part["before"] == pytest.approx(
        found["closed_form"]["after" if found["closed_form"]["kept"] else "before"], rel=1e-4
    )
    assert part["kept"] == (part["after"] < part["before"])


@pytest.mark.parametrize(("scheme", "clips"), [("w4a4", True), ("w4a8", False), ("w4a16", False)])
def test_channels_are_clipped_where_activations_have_few_bits(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, clips: bool
) -> None:
    asked: list[bool] = []

    def spy(*args: Any, **more: Any) -> Any:
        asked.append(bool(more["clips"]))
        return equalize(*args, **more)

    monkeypatch.setattr(rounding, "equalize", spy)
    record_of(networks, tmp_path, effort="fast", scheme=scheme)
    assert asked == [clips]


def test_none_leaves_the_nearest_rounding(networks: Path, tmp_path: Path) -> None:
    found = record_of(networks, tmp_path, effort="none")
    assert found == {"effort": "none", "closed_form": None, "reconstruction": None}


def test_rounding_that_held_out_images_dislike_is_taken_back(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids: list[dict[str, Any]] = []

    def harmful(network: Any, *args: Any, **more: Any) -> Any:
        grids.append(network.integer_weights())
        result = round_network(network, *args, **more)
        for parameter in network.parameters():
            parameter.mul_(-1)
        return result

    kept: list[dict[str, Any]] = []

    def look(*args: Any) -> Any:
        found = rounding.rounded(*args)
        kept.append(args[1].integer_weights())
        return found

    monkeypatch.setattr(rounding, "round_network", torch.no_grad()(harmful))
    monkeypatch.setattr(quantizing, "rounded", look)
    config = own(
        networks,
        tmp_path,
        recipe="none",
        calib_data=str(networks / "calib.npz"),
        finetune=False,
        effort="fast",
    )
    build(config, until="quantize")
    for name, (integers, qparams) in grids[0].items():
        assert (kept[0][name][0] == integers).all()
        assert (kept[0][name][1].scale == qparams.scale).all()


@pytest.mark.parametrize("target", ["trt", "rtx", "ort-cpu"])
def test_an_equalised_network_leaves_as_it_was_judged(
    networks: Path, tmp_path: Path, target: str
) -> None:
    # On rtx the depthwise layers stay in float: their equalised weights must reach the graph.
    config = own(
        networks,
        tmp_path,
        recipe="none",
        calib_data=str(networks / "calib.npz"),
        eval_data=str(networks / "calib.npz"),
        target=target,
        scheme="w8a8",
        finetune=False,
    )
    report = build(config).report
    assert report is not None
    assert report["parity"]["relative_l2"] < 1e-2
    assert report["accuracy"]["agreement"] > 90


@pytest.mark.parametrize(
    ("recipe", "asked", "wanted"),
    [("none", "auto", "normal"), ("none", "best", "best"), ("fdda-paper", "auto", "none")],
)
def test_auto_depends_on_what_is_at_hand(
    networks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
    asked: str,
    wanted: str,
) -> None:
    seen: list[str] = []

    def look(context: RunContext, *_args: Any) -> Any:
        seen.append(rounding.effort_of(context))
        raise KeyboardInterrupt

    monkeypatch.setattr(quantizing, "reference_of", look)
    config = own(
        networks,
        tmp_path,
        recipe=recipe,
        effort=asked,
        calib_data=str(networks / "calib.npz"),
    )
    with pytest.raises(KeyboardInterrupt):
        build(config, until="quantize")
    assert seen == [wanted]
