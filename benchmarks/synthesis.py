r"""How fast images are made, recipe by recipe, beside the plain float32 loop in the same process.

    python benchmarks/synthesis.py --out benchmarks/results/synthesis.json \
        --plot benchmarks/results/synthesis.svg --network cifar_resnet20 --rounds 5 --steps 4

A round times the plain loop, then the default one, so that a busy machine slows both alike: ratios
are medians over rounds of one round's two times. On a CPU recipes have the sizes of the reduced
schedule, on CUDA the published ones. A row that was measured with the same settings is replaced.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from synthesis_memory import MIB, PeakMemory, cpu_name
from synthesis_networks import NETWORKS, TimedNetwork, load
from synthesis_plot import draw
from tally import merged

from fdda_deploy.config.sections import SynthesisConfig
from fdda_deploy.pipeline.stages.recipe_choice import scheduled
from fdda_deploy.pipeline.synthesis.precision import autocast_pays
from fdda_deploy.pipeline.synthesis.recipes import Recipe, recipe_named
from fdda_deploy.pipeline.synthesis.synthesizer import Synthesizer

RECIPES = ["fdda", "gdfq", "lrq", "zeroq", "dsg", "genie"]
KEY = ("network", "recipe", "device", "threads")
"""What makes two rows the same measurement."""

Row = dict[str, Any]
Times = dict[str, list[float]]


def interleaved(
    runs: Mapping[str, Callable[[], None]], rounds: int, clock: Callable[[], float]
) -> Times:
    """Returns the seconds of each run, round by round: A B A B, never A A B B.

    Args:
        runs: What to time, by name, in order; each ends with its work done.
        rounds: Times each.
        clock: Seconds.
    """
    times: Times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return times


def ratios(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Returns median, least and greatest of how many times ``fast`` fits into ``slow``, by round.

    Raises:
        ValueError: The rounds do not pair.
    """
    each = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"median": statistics.median(each), "low": min(each), "high": max(each)}


def speeds(seconds: Sequence[float], steps: int, images: int, schedule: int) -> dict[str, float]:
    """Returns the rates of one loop, from the median of its rounds.

    Args:
        seconds: Of each round.
        steps: In a round.
        images: That the network sees in a step.
        schedule: Steps of one training on the recipe's schedule, for ``schedule_seconds``.
    """
    per_step = statistics.median(seconds) / steps
    return {
        "steps_per_second": 1 / per_step,
        "images_per_second": images / per_step,
        "schedule_seconds": schedule * per_step,
    }


def per_cpu_second(seconds: Sequence[float], steps: int, device: torch.device) -> float | None:
    """Returns steps per second of processor time, which a busy machine hardly changes.

    With one thread that is what one free core would do; None on CUDA, where the process's clock
    sees launches alone.

    Args:
        seconds: Of processor time, each round's.
        steps: In a round.
        device: Where the work was done.
    """
    return steps / statistics.median(seconds) if device.type == "cpu" else None


def recipe_for(name: str, network: TimedNetwork, device: torch.device) -> Recipe:
    """Returns the recipe as a build on ``device`` would take it."""
    return scheduled(
        recipe_named(name), SynthesisConfig(), size=network.size, reduce=device.type == "cpu"
    )


class Loop:
    """One synthesizer and what it held and needed.

    Args:
        network: What images are made for.
        recipe: How.
        device: Where.
        fast: With all shortcuts, bfloat16 where it pays; False is the plain float32 loop.
    """

    def __init__(
        self, network: TimedNetwork, recipe: Recipe, device: torch.device, *, fast: bool
    ) -> None:
        self.device, self.autocast = device, fast and autocast_pays(device)
        memory = PeakMemory(device)
        self.synthesizer = Synthesizer(
            network.statistics,
            recipe,
            image_shape=network.shape,
            num_classes=network.num_classes,
            centers=network.centers,
            device=device,
            seed=0,
            autocast=self.autocast,
            fast=fast,
            bounds=network.bounds,
        )
        self.images_per_step = len(self.synthesizer.step().images)
        self.run(1)  # the second step has the optimizer's state as well
        self.peak_bytes = memory.growth_bytes()

    def run(self, steps: int) -> None:
        """Takes some steps and waits for them."""
        for _ in range(steps):
            self.synthesizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measured(
    network: TimedNetwork, name: str, device: torch.device, rounds: int, steps: int
) -> Row:
    """Returns the row of one recipe: both loops, warm, in interleaved rounds."""
    recipe = recipe_for(name, network, device)
    gc.collect()
    loops = {
        "eager_float32": Loop(network, recipe, device, fast=False),
        "fast": Loop(network, recipe, device, fast=True),
    }
    wall: Times = {loop: [] for loop in loops}
    work: Times = {loop: [] for loop in loops}

    def timed(loop: str) -> Callable[[], None]:
        def run() -> None:
            start = time.process_time()
            loops[loop].run(steps)
            work[loop].append(time.process_time() - start)

        return run

    wall = interleaved({loop: timed(loop) for loop in loops}, rounds, time.perf_counter)
    row: Row = {
        "network": network.name,
        "recipe": name,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "image_shape": list(network.shape),
        "images_per_step": loops["fast"].images_per_step,
        "schedule_steps": recipe.num_steps,
        "rounds": rounds,
        "steps_per_round": steps,
        "bfloat16": loops["fast"].autocast,
        "speedup": ratios(wall["eager_float32"], wall["fast"]),
    }
    if device.type == "cpu":  # see per_cpu_second
        row["cpu_time_speedup"] = ratios(work["eager_float32"], work["fast"])
    for loop, timing in loops.items():
        peak = timing.peak_bytes
        row[loop] = {
            **speeds(wall[loop], steps, timing.images_per_step, recipe.num_steps),
            "seconds": wall[loop],
            "cpu_seconds": work[loop],
            "steps_per_cpu_second": per_cpu_second(work[loop], steps, device),
            "peak_mib": None if peak is None else peak / MIB,
        }
    return row


def machine(device: torch.device) -> dict[str, str]:
    """Returns what the figures were measured on."""
    names = ("torch", "fdda-deploy")
    found = {name: metadata.version(name) for name in names} | {"cpu": cpu_name()}
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def main() -> None:
    """Measures, prints a line for each row and keeps the JSON after it; draws the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--network", nargs="*", default=["cifar_resnet20", "mobilenet_v2"])
    parser.add_argument("--recipe", nargs="*", default=RECIPES, choices=RECIPES)
    parser.add_argument("--device", nargs="*", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps in a round")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.network) - set(NETWORKS))
    if unknown:
        parser.error(f"--network {unknown[0]}: want one of {', '.join(NETWORKS)}")
    rows: list[Row] = []
    if arguments.out.is_file():
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    here = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for kind in arguments.device or here:
        device = torch.device(kind)
        for name in arguments.network:
            network = load(name, device)
            for recipe in arguments.recipe:
                row = measured(network, recipe, device, arguments.rounds, arguments.steps)
                rows = merged(rows, {**row, "machine": machine(device)}, KEY)
                _write(rows, arguments.out)
                print(line(row), flush=True)
    if arguments.plot is not None:
        draw(rows, arguments.plot)


def line(row: Row) -> str:
    """Returns one row in words."""
    speedup, fast, plain = row["speedup"], row["fast"], row["eager_float32"]
    peaks = [
        "not measured" if loop["peak_mib"] is None else f"{loop['peak_mib']:.0f} MiB"
        for loop in (fast, plain)
    ]
    return (
        f"{row['network']:14} {row['recipe']:5} {row['device']:4} "
        f"{fast['steps_per_second']:8.2f} steps/s {fast['images_per_second']:8.1f} images/s  "
        f"x{speedup['median']:.2f} ({speedup['low']:.2f} to {speedup['high']:.2f})  "
        f"{peaks[0]} (plain {peaks[1]})"
    )


def _write(rows: Sequence[Row], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".part")
    partial.write_text(json.dumps({"rows": list(rows)}, indent=1) + "\n", encoding="utf-8")
    partial.replace(out)


if __name__ == "__main__":
    main()
