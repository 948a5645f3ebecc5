r"""Whether torch.compile pays for synthesis: steps saved against the time that compiling takes.

    python benchmarks/synthesis_compile.py --out benchmarks/results/synthesis_compile.json

Each row is one network and recipe: the default loop as it is beside the same loop with its float
network and its generator compiled, in alternating rounds of one process. What counts is processor
time, children's included, for the C++ compiler is one. The row says what compiling cost, how many
steps pay it back, and the speed-up over the whole reduced schedule, compiling counted.
Needs a C++ compiler, and the data folder beside the checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from synthesis import KEY, Loop, interleaved, machine, ratios, recipe_for
from synthesis_networks import TimedNetwork, load
from tally import merged, processor_seconds

CASES = ("cifar_resnet20:fdda", "mobilenet_v2:zeroq")
NUM_IMAGES = 128
"""Images of the set that the schedule is reckoned for: learned images take it once a batch."""

Row = dict[str, Any]


def timed(work: Callable[[], None]) -> float:
    """Returns the processor seconds of a piece of work."""
    start = processor_seconds()
    work()
    return processor_seconds() - start


def compile_loop(loop: Loop) -> None:
    """Makes a loop run its float network and its generator through inductor from now on."""
    made_by = loop.synthesizer
    made_by.seeing.graph_module.forward = torch.compile(made_by.seeing.graph_module.forward)
    generator = getattr(made_by.source, "generator", None)
    if generator is not None:
        generator.forward = torch.compile(generator.forward)


def worth(eager: Sequence[float], compiled: Sequence[float], cost: float, steps: int) -> Row:
    """Returns what compiling is worth.

    Args:
        eager: Seconds of a step, by round.
        compiled: The same, compiled.
        cost: Seconds that compiling took.
        steps: Of the schedule.

    Returns:
        ``step_speedup`` by rounds; ``pays_after_steps``, None where it never does; and
        ``schedule_speedup``, over all steps with compiling counted.
    """
    before, after = statistics.median(eager), statistics.median(compiled)
    saved = before - after
    return {
        "step_speedup": ratios(eager, compiled),
        "compile_seconds": cost,
        "pays_after_steps": cost / saved if saved > 0 else None,
        "schedule_steps": steps,
        "schedule_speedup": steps * before / (cost + steps * after),
    }


def measured(network: TimedNetwork, name: str, rounds: int, steps: int) -> Row:
    """Returns the row of one network and recipe."""
    device = torch.device("cpu")
    recipe = recipe_for(name, network, device)
    plain = Loop(network, recipe, device, fast=True)
    compiled = Loop(network, recipe, device, fast=True)
    compile_loop(compiled)
    first = timed(lambda: compiled.run(2))  # both batches' shapes, forwards and backwards
    loops = {"eager": plain, "compiled": compiled}
    each = {
        loop: [seconds / steps for seconds in found]
        for loop, found in interleaved(
            {loop: _run(run, steps) for loop, run in loops.items()}, rounds, processor_seconds
        ).items()
    }
    cost = max(0.0, first - 2 * statistics.median(each["compiled"]))
    parts = -(-NUM_IMAGES // plain.images_per_step) if recipe.learns_images else 1
    return {
        "network": network.name,
        "recipe": name,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "images_per_step": plain.images_per_step,
        "rounds": rounds,
        "steps_per_round": steps,
        "step_seconds": each,
        **worth(each["eager"], each["compiled"], cost, recipe.num_steps * parts),
    }


def _run(loop: Loop, steps: int) -> Callable[[], None]:
    return lambda: loop.run(steps)


def main() -> None:
    """Measures, prints a line for each row and keeps the JSON after it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--case", nargs="*", default=CASES, help="NETWORK:RECIPE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="steps in a round")
    arguments = parser.parse_args()
    rows: list[Row] = []
    if arguments.out.is_file():
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # in this process, to be counted
    for case in arguments.case:
        name, recipe = case.split(":")
        network = load(name, torch.device("cpu"))
        with tempfile.TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # nothing compiled before is found
            row = measured(network, recipe, arguments.rounds, arguments.steps)
        rows = merged(rows, {**row, "machine": machine(torch.device("cpu"))}, KEY)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        partial = arguments.out.with_suffix(".part")
        partial.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
        partial.replace(arguments.out)
        print(line(row), flush=True)


def line(row: Row) -> str:
    """Returns one row in words."""
    step, pays = row["step_speedup"], row["pays_after_steps"]
    after = "never" if pays is None else f"after {pays:.0f} of {row['schedule_steps']} steps"
    return (
        f"{row['network']:14} {row['recipe']:5} a step x{step['median']:.2f} "
        f"({step['low']:.2f} to {step['high']:.2f}), compiling {row['compile_seconds']:.0f} s, "
        f"pays {after}, schedule x{row['schedule_speedup']:.2f}"
    )


if __name__ == "__main__":
    main()
