"""The quantize stage does what scale search and fine-tuning options ask for, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from road_networks import own

from fdda_deploy.calib_cache.store import load_record
from fdda_deploy.pipeline.quantization.easyquant import ScaleSearch, search_scales
from fdda_deploy.pipeline.quantization.finetune import FinetuneSettings, finetune
from fdda_deploy.pipeline.run import build
from fdda_deploy.pipeline.stages import finetuning, searching


def quantized(
    networks: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> tuple[list[ScaleSearch], list[FinetuneSettings]]:
    """What the stage searched, and the settings it fine-tuned with."""
    searches: list[ScaleSearch] = []
    settings: list[FinetuneSettings] = []

    def searching_spy(*args: Any, **more: Any) -> ScaleSearch:
        searches.append(search_scales(*args, **more))
        return searches[-1]

    def finetune_spy(*args: Any, **more: Any) -> Any:
        settings.append(args[4])
        return finetune(*args, **more)

    monkeypatch.setattr(searching, "search_scales", searching_spy)
    monkeypatch.setattr(finetuning, "finetune", finetune_spy)
    config = own(networks, out, calib_data=str(networks / "calib.npz"), recipe="none", **changes)
    build(config, until="quantize")
    return searches, settings


def test_without_options_nothing_is_searched_and_the_loss_is_the_papers(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches, (settings,) = quantized(networks, tmp_path, monkeypatch)
    assert searches == []
    assert (settings.loss, settings.psg, settings.scale_clip) == ("fdda", False, None)
    assert (settings.trainable, settings.cosine_period_steps) == ("scales-and-biases", None)


def test_options_reach_the_search_and_the_fine_tuning(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (search,), (settings,) = quantized(
        networks,
        tmp_path,
        monkeypatch,
        scale_search="easyquant",
        finetune_loss="dkd",
        psg=True,
        scale_clip=2.5,
        scheme="w4a4",
    )
    assert "linear" in search.cosines
    assert all(after >= before - 1e-6 for before, after in search.cosines.values())
    assert search.kept == (search.after < search.before)
    assert (settings.loss, settings.psg, settings.scale_clip) == ("dkd", True, 2.5)


@pytest.mark.parametrize(("scheme", "rate"), [("w4a4", 2e-3), ("w4a8", 1e-4)])
def test_scales_learn_at_the_rate_that_the_width_of_activations_bears(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, rate: float
) -> None:
    _, (settings,) = quantized(networks, tmp_path, monkeypatch, scheme=scheme)
    assert (settings.scale_lr, settings.step_lr, settings.bias_lr) == (rate, 2 * rate, rate)


@pytest.mark.parametrize("observer", ["lp", "entropy"])
def test_an_observer_by_name_decides_the_ranges(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observer: str
) -> None:
    scales = []
    for name in (observer, "minmax"):
        quantized(networks, tmp_path / name, monkeypatch, observer=name, finetune=False)
        record = load_record(tmp_path / name / "calibration.json")
        assert record.algorithm == name
        acts = {key: t for key, t in record.tensors.items() if t.role == "activation"}
        scales.append({key: t.qparams.scale.tolist() for key, t in acts.items()})
    assert scales[0].keys() == scales[1].keys()
    assert scales[0] != scales[1]
