"""Networks that are measured: the same grids as calibration gives, found once for each width."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from road_networks import own

from fdda_deploy.engines.doctor import choose_backend
from fdda_deploy.pipeline.progress import ignore_progress
from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.stages import sensing
from fdda_deploy.pipeline.stages.context import RunContext, Stage
from fdda_deploy.pipeline.stages.placing import converted, placement_with
from fdda_deploy.pipeline.stages.reading import LOAD, STATISTICS
from fdda_deploy.pipeline.stages.sensing import Measuring, measuring
from fdda_deploy.pipeline.stages.synthesizing import SYNTHESIZE
from fdda_deploy.pipeline.workspace import Workspace

POINTS = ("blocks.0.point/Conv", "blocks.1.point/Conv")


@pytest.fixture(scope="module")
def context(networks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    out = tmp_path_factory.mktemp("measuring")
    config = own(
        networks,
        out,
        recipe="none",
        calib_data=str(networks / "calib.npz"),
        scheme="w3a4",
        effort="none",
        backend="ort-cpu",
    )
    context = RunContext(config, choose_backend("ort-cpu"), "trt")
    with Workspace(out) as workspace:
        for stage in (LOAD, STATISTICS, SYNTHESIZE):
            context.results[stage.name] = workspace.run_stage(
                stage.name, stage.inputs(context), runner(stage, context)
            )
        yield context


def runner(stage: Stage, context: RunContext) -> Any:
    return lambda folder: stage.run(context, folder, ignore_progress)


@pytest.fixture
def networks_of(context: RunContext) -> Measuring:
    return measuring(context)


@pytest.fixture
def calibrations(monkeypatch: pytest.MonkeyPatch) -> list[QuantNetwork]:
    """Every network that was calibrated rather than given known ranges."""
    seen: list[QuantNetwork] = []

    def counted(network: QuantNetwork, *arguments: Any, **options: Any) -> None:
        seen.append(network)
        calibrate(network, *arguments, **options)

    monkeypatch.setattr(sensing, "calibrate", counted)
    return seen


def freshly_calibrated(context: RunContext, widths: dict[str, int | None] | None) -> QuantNetwork:
    network = converted(context, placement_with(context, widths))
    pool = measuring(context).pool
    calibrate(network, pool.calibration_batches((40, 0), 32))
    return network


@pytest.mark.parametrize(
    "widths",
    [None, dict.fromkeys(POINTS, 8), {POINTS[0]: None, POINTS[1]: 8}],
    ids=["the scheme's", "raised", "one in float"],
)
def test_a_network_has_the_grids_of_its_own_calibration(
    context: RunContext, networks_of: Measuring, widths: dict[str, int | None] | None
) -> None:
    networks_of.network(None, ignore_progress)
    found = networks_of.network(widths, ignore_progress)
    wanted = freshly_calibrated(context, widths)
    assert found.placement == wanted.placement
    for name, grid in wanted.activation_qparams().items():
        got = found.activation_qparams()[name]
        assert (got.qmin, got.qmax, float(got.scale)) == (grid.qmin, grid.qmax, float(grid.scale))
    for point in wanted.placement.weights:
        np.testing.assert_array_equal(
            found.weight_qparams(point).scale, wanted.weight_qparams(point).scale
        )


def test_ranges_are_found_once_for_each_tensor_and_width(
    networks_of: Measuring, calibrations: list[QuantNetwork]
) -> None:
    widths: list[dict[str, int | None] | None] = [
        None,
        None,
        dict.fromkeys(POINTS, 8),
        {POINTS[0]: 8},
        {POINTS[0]: None},
    ]
    counts = []
    for each in widths:
        networks_of.network(each, ignore_progress)
        counts.append(len(calibrations))
    assert counts == [1, 1, 2, 2, 2]


def test_weights_are_rounded_by_the_one_function_that_is_named(
    networks_of: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def keep(context: RunContext, network: QuantNetwork, images: torch.Tensor) -> None:
        sensing.round_weights(context, network, images)
        seen.append(tuple(images.shape))

    monkeypatch.setattr(sensing, "ROUND_WEIGHTS", keep)
    networks_of.network(None, ignore_progress)
    assert seen == [(32, 3, 16, 16)]


def test_the_build_rounds_what_it_measures_in_closed_form(
    networks_of: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearest = networks_of.network(None, ignore_progress).integer_weights()
    monkeypatch.setattr(sensing, "effort_of", lambda _context: "fast")
    closed = networks_of.network(None, ignore_progress).integer_weights()
    assert any((closed[name][0] != nearest[name][0]).any() for name in nearest)
