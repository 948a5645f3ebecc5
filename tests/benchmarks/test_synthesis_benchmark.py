"""benchmarks/synthesis.py: fair rounds, right ratios, rows that the committed JSON has too."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import synthesis
import synthesis_memory
import synthesis_networks
import synthesis_plot
import torch
from torch import nn

from fdda_deploy.pipeline.network import statistics_network, trace
from fdda_deploy.pipeline.synthesis.centers import class_centers

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
ROWS = json.loads((RESULTS / "synthesis.json").read_text(encoding="utf-8"))["rows"]
CPU = torch.device("cpu")
SHAPE = (3, 8, 8)
FDDA_ON_CPU = ("fdda", "cpu")


@pytest.fixture
def network() -> synthesis_networks.TimedNetwork:
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 3)).eval()
    statistics = statistics_network(trace(module, SHAPE))
    batch = (torch.randn(6, *SHAPE), torch.arange(6) % 3)
    centers = class_centers(statistics, [batch], 3, device=CPU)
    bounds = (torch.full((3,), -2.0), torch.full((3,), 2.0))
    return synthesis_networks.TimedNetwork("tiny", statistics, SHAPE, 3, centers, bounds)


def row(recipe: str, median: float) -> dict[str, object]:
    speedup = {"median": median, "low": median - 0.1, "high": median + 0.2}
    key = {"network": "tiny", "recipe": recipe, "device": "cpu", "threads": 1}
    return {**key, "speedup": speedup}


def test_rounds_alternate_so_that_a_busy_machine_slows_both():
    order: list[str] = []
    ticks = iter(range(100))
    runs = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = synthesis.interleaved(runs, 3, lambda: float(next(ticks)))
    assert "".join(order) == "ababab"
    assert times == {"a": [1.0, 1.0, 1.0], "b": [1.0, 1.0, 1.0]}


def test_a_ratio_is_the_median_of_rounds_and_not_of_sums():
    found = synthesis.ratios([2.0, 30.0, 6.0], [1.0, 10.0, 3.0])
    assert found == {"median": 2.0, "low": 2.0, "high": 3.0}


def test_rounds_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        synthesis.ratios([1.0, 2.0], [1.0])


def test_speeds_come_from_the_median_round():
    found = synthesis.speeds([4.0, 2.0, 90.0], steps=2, images=16, schedule=500)
    assert found == {
        "steps_per_second": 0.5,
        "images_per_second": 8.0,
        "schedule_seconds": 1000.0,
    }


def test_processor_time_counts_where_the_processor_does_the_work():
    assert synthesis.per_cpu_second([1.0, 4.0, 2.0], 3, CPU) == 1.5
    assert synthesis.per_cpu_second([1.0], 3, torch.device("cuda")) is None


@pytest.mark.parametrize(("kind", "steps"), [("cpu", 500), ("cuda", 80_000)])
def test_a_recipe_has_the_sizes_of_a_build_on_that_device(kind, steps, network):
    assert synthesis.recipe_for("fdda", network, torch.device(kind)).num_steps == steps


@pytest.mark.parametrize("recipe", ["fdda", "zeroq"])
def test_a_row_measured_now_has_the_keys_of_the_committed_ones(recipe, network):
    found = synthesis.measured(network, recipe, CPU, 2, 1)
    found["machine"] = synthesis.machine(CPU)
    committed = ROWS[0]
    assert found.keys() == committed.keys()
    for loop in ("fast", "eager_float32"):
        assert found[loop].keys() == committed[loop].keys()
        assert len(found[loop]["seconds"]) == len(found[loop]["cpu_seconds"]) == 2
    assert json.loads(json.dumps(found)) == found
    assert "steps/s" in synthesis.line(found)


def test_committed_ratios_are_those_of_the_committed_seconds():
    for found in ROWS:
        times = [found[loop]["seconds"] for loop in ("eager_float32", "fast")]
        assert found["speedup"] == pytest.approx(synthesis.ratios(*times))
        assert len(times[0]) == found["rounds"]


def test_fdda_is_half_as_fast_again_as_the_plain_loop_on_both_networks():
    fdda = {row["network"]: row for row in ROWS if (row["recipe"], row["device"]) == FDDA_ON_CPU}
    assert fdda.keys() >= {"cifar_resnet20", "mobilenet_v2"}
    for found in fdda.values():
        assert found["speedup"]["median"] >= 1.5
        assert found["cpu_time_speedup"]["low"] >= 1.5


def test_the_peak_of_memory_that_was_given_back_is_seen():
    watch = synthesis_memory.PeakMemory(CPU)
    block = torch.ones(64 * synthesis_memory.MIB // 4)
    del block
    grown = watch.growth_bytes()
    if grown is None:
        pytest.skip("no /proc/self/clear_refs: not Linux")
    assert 60 * synthesis_memory.MIB < grown < 90 * synthesis_memory.MIB


def test_a_status_without_the_field_says_so():
    assert synthesis_memory.kib_of("VmRSS", "VmHWM:\t  7 kB\nVmRSS:\t  5 kB\n") == 5
    with pytest.raises(ValueError, match=r"no field VmHWM\. Is this Linux\?"):
        synthesis_memory.kib_of("VmHWM", "VmRSS:\t  5 kB\n")


def test_the_processor_has_a_name():
    assert synthesis_memory.cpu_name().strip()


def test_the_same_rows_draw_the_same_file(tmp_path):
    rows = [row("fdda", 2.0), row("zeroq", 1.5)]
    for name in ("a.svg", "b.svg"):
        synthesis_plot.draw(rows, tmp_path / name)
    first = (tmp_path / "a.svg").read_bytes()
    assert first == (tmp_path / "b.svg").read_bytes()
    assert ET.fromstring(first).tag.endswith("svg")  # noqa: S314  # our own file


def test_no_row_draws_an_empty_page(tmp_path):
    synthesis_plot.draw([], tmp_path / "empty.svg")
    assert (tmp_path / "empty.svg").stat().st_size > 0
