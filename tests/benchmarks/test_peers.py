"""benchmarks/peers.py, its rows and lanes: what is measured again, in which order, and where."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import peers
import peers_lanes
import peers_rows
import pytest
from peer_rows import document, failed, row
from peers_inputs import NETWORKS
from peers_rows import Place, Settings
from peers_tools import MODELOPT, ORT, OURS, TOOLS, VARIANTS

NOW = {"code": "0123456789ab"}


@pytest.fixture
def report(tmp_path) -> peers.Report:
    return peers.Report(tmp_path / "peers.json", peers.opened(tmp_path / "peers.json", Settings()))


def variant_of(tool):
    return next(variant for variant in VARIANTS if variant.tool == tool)


def test_rows_stand_by_network_tool_and_variant_whatever_was_measured_first():
    wanted = [
        {"network": network, **variant.key}
        for network in NETWORKS
        for tool in TOOLS
        for variant in VARIANTS
        if variant.tool == tool
    ]
    assert peers.ordered(wanted[::-1]) == wanted


def test_every_network_is_quantized_every_way_once_and_by_the_tools_asked_for():
    found = list(peers.jobs(list(NETWORKS), TOOLS))
    assert sorted((n, v.slug) for n, v in found) == sorted(
        (n, v.slug) for n in NETWORKS for v in VARIANTS
    )
    assert {variant.tool for _, variant in peers.jobs(["mobilenet_v2"], [ORT])} == {ORT}


def test_results_of_other_settings_are_not_added_to(tmp_path):
    path = tmp_path / "peers.json"
    settings = Settings(images=8)
    assert peers.opened(path, settings)["rows"] == []
    there = document(row(OURS, "trt")) | {"settings": dataclasses.asdict(settings)}
    path.write_text(json.dumps(there), encoding="utf-8")
    assert peers.opened(path, settings) == there
    with pytest.raises(SystemExit, match=r"measured with .*, or --fresh to measure all again\."):
        peers.opened(path, Settings(images=16))
    assert peers.opened(path, Settings(images=16), fresh=True)["rows"] == []


def test_a_row_is_measured_again_where_it_failed_or_the_code_is_another(report):
    ours = variant_of(OURS)
    assert report.lacks("mobilenet_v2", ours, NOW)
    done = row(OURS, ours.name, network="mobilenet_v2")
    report.add(done)
    assert not report.lacks("mobilenet_v2", ours, NOW)
    assert report.lacks("mobilenet_v2", ours, {"code": "another"})
    assert report.lacks("cifar_resnet20", ours, NOW)
    report.add(done | {"failed": "stopped"})
    assert report.lacks("mobilenet_v2", ours, NOW)


def test_every_row_is_on_the_disk_with_the_time_of_its_run(report, tmp_path, capsys):
    report.add(row(OURS, "trt", network="mobilenet_v2"))
    report.add(failed(ORT, "minmax", "no such method") | {"network": "mobilenet_v2"})
    found = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))
    assert [found["tool"] for found in found["rows"]] == [ORT, OURS]
    assert [run["rows"] for run in found["runs"]] == [2]
    assert found["runs"][0]["seconds"] < 60
    assert capsys.readouterr().out.count("\n") == 2


def test_a_row_in_one_line_has_its_figures_or_its_reason():
    refused = row(ORT, "minmax", rtx_accepts=False, plan_bytes=None)
    assert "refused" in peers.line(refused)
    assert peers.line(failed(MODELOPT, "max", "`pip` said no")).endswith("`pip` said no")
    assert "plan 0.50" in peers.line(row(OURS, "trt"))


@pytest.mark.parametrize(
    ("cpus", "lanes", "threads", "wanted"),
    [
        ([0, 1], 2, 1, [[0], [1]]),
        ([3], 2, 1, [[3]]),
        ([0, 1, 2, 5, 6], 2, 2, [[0, 1], [2, 5]]),
        ([0, 1, 2, 3], 1, 1, [[0]]),
        ([0], 2, 4, [[0]]),
    ],
    ids=["two", "one CPU", "two threads each", "one asked for", "fewer CPUs than threads"],
)
def test_a_lane_has_cpus_that_no_other_has(cpus, lanes, threads, wanted):
    assert peers_lanes.lanes_of(lanes, threads, cpus) == wanted


def test_what_runs_in_a_lane_is_kept_to_its_cpus():
    cpu = min(os.sched_getaffinity(0))
    with peers_lanes.open_lanes([[cpu]]) as lanes:
        assert lanes.submit(os.sched_getaffinity, 0).result() == {cpu}


def test_a_tool_that_is_not_there_is_a_row_with_its_reason(tmp_path):
    folder = tmp_path / "mobilenet_v2-500-1000"
    folder.mkdir()
    (folder / "inputs.json").write_text('{"digest": "d", "num_calib": 8}', encoding="utf-8")
    place = Place(tmp_path, Settings(), Path("python"), "pip said no")
    found = peers_rows.row_of("mobilenet_v2", variant_of(MODELOPT), place)
    assert (found["failed"], found["made_with"], found["calibrated_on"]) == ("pip said no", {}, 8)
    assert found["all_cpu_seconds"] >= 0
    assert peers_rows.is_timed(found)


def test_ours_is_known_by_its_sources_and_the_others_by_their_versions(tmp_path):
    place = Place(tmp_path, Settings())
    assert len(place.made_with(OURS)["code"]) == peers_rows.DIGITS
    assert place.made_with(ORT)["onnxruntime"].count(".") == 2
