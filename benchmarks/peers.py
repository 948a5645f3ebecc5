r"""The tools that people quantize with now, and ours: same networks, images, machine and threads.

    python benchmarks/peers.py --out benchmarks/results/peers.json --page

ONNX Runtime's static quantization, NVIDIA ModelOpt's ONNX quantization (in a virtual environment of
its own, made on the first run) and fdda-deploy. Each quantizes in a process of its own, one at a
time. Columns: top-1 drop (paired), KL, seconds, peak memory, whether TensorRT-RTX takes the file as
it stands, plan bytes, latency in ONNX Runtime on the CPU, file bytes. Rows are added as they are
measured, so that a run that was stopped goes on; a row that failed is tried again. ``--page`` also
writes docs/peers.md, its plot, and the README's table. Needs the data folder beside the checkout.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peers_modelopt_venv
from peers_child import GIB, Finished, run
from peers_inputs import NETWORKS, SHARED, Inputs, prepared
from peers_measure import Effort, latencies, measured
from peers_page import write_page
from peers_tools import (
    MODELOPT,
    OURS,
    TOOLS,
    VARIANTS,
    Variant,
    command_of,
    file_of,
    require_same_images,
)
from peers_verdict import LATENCY

from fdda_deploy import __version__
from fdda_deploy.durable import write_whole
from fdda_deploy.engines.bench_environment import bench_environment
from fdda_deploy.engines.trt_api import load_api

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]


def main() -> None:
    """Measures what is not there yet, then writes page, plot and the README's table."""
    arguments = _arguments()
    if arguments.render:
        write_page(json.loads(arguments.out.read_text(encoding="utf-8")), ROOT)
        return
    if not SHARED.is_dir():
        print(f"nothing measured: {SHARED} is absent")
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    settings = _settings(arguments)
    document = opened(arguments.out, settings)
    bench = Bench(arguments, document)
    for variant in VARIANTS:
        for network in arguments.network:
            if variant.tool in arguments.tool and not bench.has(network, variant):
                bench.measure(network, variant)
    for network in arguments.network:
        bench.measure_latency(network)
    if arguments.page:
        write_page(document, ROOT)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=ROOT / "out/peers", help="scratch, 2 GB")
    parser.add_argument("--network", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--tool", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--images", type=int, default=500, help="to calibrate on")
    parser.add_argument("--test-images", type=int, default=1000, help="at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="of latency")
    parser.add_argument("--limit-seconds", type=float, default=600, help="of one quantization")
    parser.add_argument("--limit-gib", type=float, default=6, help="of one quantization")
    parser.add_argument("--page", action="store_true", help="write docs and README too")
    parser.add_argument("--render", action="store_true", help="write them from the JSON alone")
    return parser.parse_args()


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("images", "test_images", "threads", "rounds", "limit_seconds", "limit_gib")
    return {name: getattr(arguments, name) for name in names}


def opened(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the results there are, or empty ones.

    Raises:
        SystemExit: They were measured with other settings.
    """
    if not path.is_file():
        return {"settings": dict(settings), "machine": {}, "versions": {}, "rows": []}
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if document["settings"] != dict(settings):
        raise SystemExit(
            f"{path}: measured with {document['settings']}, now {dict(settings)}. Give another "
            "--out, or the same settings."
        )
    return document


def merged(rows: Sequence[Row], row: Row) -> list[Row]:
    """Returns the rows with one added, in the place of the one with its key if there is one."""
    keys = ("network", "tool", "variant", "scheme")
    same = [all(old[key] == row[key] for key in keys) for old in rows]
    if not any(same):
        return [*rows, row]
    return [row if found else old for old, found in zip(rows, same, strict=True)]


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Returns rows by network, then by tool and its variants as `VARIANTS` has them."""
    networks, keys = list(NETWORKS), [variant.key for variant in VARIANTS]

    def place(row: Row) -> tuple[int, int, int]:
        key = {name: row[name] for name in ("tool", "variant", "scheme")}
        return networks.index(row["network"]), TOOLS.index(row["tool"]), keys.index(key)

    return sorted(rows, key=place)


class Bench:
    """One run: its settings, its results so far, and what is made on the way once."""

    def __init__(self, arguments: argparse.Namespace, document: dict[str, Any]) -> None:
        self._arguments = arguments
        self._document = document
        self._modelopt: tuple[Path, str | None] | None = None

    def has(self, network: str, variant: Variant) -> bool:
        """Whether a row is there that did not fail."""
        key = {"network": network, **variant.key}.items()
        return any(key <= row.items() and not row["failed"] for row in self._document["rows"])

    def measure(self, network: str, variant: Variant) -> None:
        """Quantizes, measures, and writes the row."""
        before = cpu_seconds()
        row: Row = {"network": network, **variant.key, **self._row(network, variant)}
        row["all_cpu_seconds"] = cpu_seconds() - before
        document = self._document
        document["rows"] = ordered(merged(document["rows"], row))
        document["machine"] = machine()
        document["versions"] |= self._versions()
        self._write()
        print(line(row), flush=True)

    def measure_latency(self, network: str) -> None:
        """Times all files of a network together, unless each that can be timed was."""
        rows = [row for row in self._document["rows"] if row["network"] == network]
        loaded = [row for row in rows if "n" in row and not row["ort_words"]]
        if all("latency" in row for row in loaded):
            return
        inputs, arguments = self._inputs(network), self._arguments
        graphs = {}
        for variant in VARIANTS:
            graph = file_of(variant, inputs.folder / variant.slug)
            if any(variant.key.items() <= row.items() for row in loaded) and graph.is_file():
                graphs[variant.slug] = graph
        found = latencies(graphs, inputs, Effort(arguments.threads, arguments.rounds))
        for variant in VARIANTS:
            for row in loaded:
                if variant.key.items() <= row.items() and variant.slug in found:
                    row["latency"] = found[variant.slug]
                    print(line(row), flush=True)
        self._write()

    def _write(self) -> None:
        self._arguments.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._document, indent=1) + "\n"
        write_whole(self._arguments.out, text.encode())

    def _inputs(self, network: str) -> Inputs:
        arguments = self._arguments
        return prepared(
            network,
            arguments.work / f"{network}-{arguments.images}-{arguments.test_images}",
            images=arguments.images,
            test_images=arguments.test_images,
        )

    def _row(self, network: str, variant: Variant) -> Row:
        inputs = self._inputs(network)
        row: Row = {"calibrated_on": inputs.num_calib, "load_average": os.getloadavg()[0]}
        maker = None
        if variant.tool == MODELOPT:
            maker, reason = self._environment()
            if reason is not None:
                return {**row, "failed": reason}
        finished, graph = self._quantized(network, variant, inputs)
        row |= dataclasses.asdict(finished)
        if finished.failed is not None:
            return row
        if variant.tool == OURS:
            require_same_images(graph, inputs)
        return row | measured(graph, inputs, self._arguments.threads, maker)

    def _quantized(self, network: str, variant: Variant, inputs: Inputs) -> tuple[Finished, Path]:
        out = inputs.folder / variant.slug
        out.mkdir(exist_ok=True)
        threads = self._arguments.threads
        modelopt, _ = self._environment() if variant.tool == MODELOPT else (Path(), None)
        command, graph = command_of(
            variant, network, inputs, out, threads=threads, modelopt=modelopt
        )
        finished = run(
            command,
            out.with_suffix(".log"),
            threads=threads,
            limit_seconds=self._arguments.limit_seconds,
            limit_bytes=int(self._arguments.limit_gib * GIB),
        )
        return finished, graph

    def _environment(self) -> tuple[Path, str | None]:
        if self._modelopt is None:
            folder = self._arguments.work.absolute() / "modelopt-venv"
            self._modelopt = peers_modelopt_venv.python_of(folder)
        return self._modelopt

    def _versions(self) -> dict[str, Any]:
        ours = bench_environment().libraries
        found: dict[str, Any] = {
            OURS: {"fdda-deploy": __version__, **ours},
            "builder": load_api("tensorrt_rtx").title,
        }
        if self._modelopt is not None and self._modelopt[1] is None:
            found[MODELOPT] = peers_modelopt_venv.versions(self._modelopt[0])
        return found


def cpu_seconds() -> float:
    """Returns the processor time of this process and of those it started and saw end."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def machine() -> dict[str, Any]:
    """Returns what the figures hold for."""
    return {
        "cpu": bench_environment().cpu,
        "cpus": os.cpu_count(),
        "platform": bench_environment().platform,
        "python": platform.python_version(),
    }


def line(row: Mapping[str, Any]) -> str:
    """Returns a row in one line."""
    what = f"{row['network']:16} {row['tool']:12} {row['variant']:13} {row['scheme']}"
    if row["failed"]:
        return f"{what}  {row['failed']}"
    drop, plan = row["drop"], row["plan_bytes"]
    share = "refused" if plan is None else f"plan {plan / row['float_plan_bytes']:.2f}"
    return (
        f"{what}  drop {drop['mean']:5.2f} [{drop['low']:.2f}, {drop['high']:.2f}]  "
        f"KL {row['kl_nats']:.4f}  {row['seconds']:5.0f} s ({row['cpu_seconds']:.0f} CPU)  "
        f"{row['peak_mib']:5.0f} MiB  {share}  latency {LATENCY.shown(row)}"
    )


if __name__ == "__main__":
    main()
