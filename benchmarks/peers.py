r"""The tools that people quantize with now, and ours: same networks, images, machine and threads.

    python benchmarks/peers.py --out benchmarks/results/peers.json --page

ONNX Runtime's static quantization, NVIDIA ModelOpt's ONNX quantization (in a virtual environment of
its own, made on the first run) and fdda-deploy. Each quantizes in a process of its own, ``--lanes``
of them at a time, each on CPUs of its own. Columns: top-1 drop (paired), KL, seconds, peak memory,
whether TensorRT-RTX takes the file as it stands, plan bytes, latency in ONNX Runtime on the CPU,
file bytes. Rows are written as they are measured, so that a run that was stopped goes on. Measured
again are rows that failed, and those of other code of ours or of another version of a tool;
``--fresh`` measures all. ``--page`` also writes docs/peers.md, its plot, and the README's table.
Needs the data folder beside the checkout.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peers_modelopt_venv
from peers_inputs import NETWORKS, SHARED
from peers_lanes import lanes_of, open_lanes
from peers_page import write_page
from peers_rows import Place, Settings, is_timed, row_of, timed, versions
from peers_tools import MODELOPT, TOOLS, VARIANTS, Variant
from peers_verdict import LATENCY
from tally import Row, merged

from fdda_deploy.durable import write_whole
from fdda_deploy.engines.bench_environment import bench_environment

ROOT = Path(__file__).parents[1]
KEY = ("network", "tool", "variant", "scheme")


def main() -> None:
    """Measures what is not there yet, then writes page, plot and the README's table."""
    arguments = _arguments()
    if arguments.render:
        write_page(json.loads(arguments.out.read_text(encoding="utf-8")), ROOT)
        return
    if not SHARED.is_dir():
        print(f"nothing measured: {SHARED} is absent")
        return
    cpus = sorted(os.sched_getaffinity(0))
    cpus_of = lanes_of(arguments.lanes, arguments.threads, cpus)
    settings = dataclasses.replace(_settings(arguments), lanes=len(cpus_of))
    report = Report(arguments.out, opened(arguments.out, settings, fresh=arguments.fresh))
    place = Place(arguments.work.absolute(), settings)
    lanes = open_lanes(cpus_of)
    try:
        place = ready(lanes, place, arguments.network, arguments.tool)
        report.document["versions"] |= versions(place, arguments.tool)
        made_with = {tool: place.made_with(tool) for tool in arguments.tool}
        wanted = [
            (network, variant)
            for network, variant in jobs(arguments.network, arguments.tool)
            if report.lacks(network, variant, made_with[variant.tool])
        ]
        for row in rows_from(lanes, wanted, place):
            report.add(row)
    finally:
        lanes.shutdown(cancel_futures=True)
    os.sched_setaffinity(0, cpus[: settings.threads])
    for network in arguments.network:
        report.time(network, place)
    if arguments.page:
        write_page(report.document, ROOT)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=ROOT / "out/peers", help="scratch, 2 GB")
    parser.add_argument("--network", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--tool", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    for field, words in HELP.items():
        default = getattr(Settings, field)
        flag = f"--{field.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default, help=words)
    parser.add_argument("--fresh", action="store_true", help="measure rows again that are there")
    parser.add_argument("--page", action="store_true", help="write docs and README too")
    parser.add_argument("--render", action="store_true", help="write them from the JSON alone")
    return parser.parse_args()


HELP = {
    "images": "to calibrate on",
    "test_images": "at most",
    "threads": "of every tool",
    "rounds": "of latency",
    "limit_seconds": "of one quantization",
    "limit_gib": "memory of one quantization",
    "lanes": "quantizations at a time, at most: each has CPUs of its own",
}


def _settings(arguments: argparse.Namespace) -> Settings:
    return Settings(**{field: getattr(arguments, field) for field in HELP})


def opened(path: Path, settings: Settings, *, fresh: bool = False) -> dict[str, Any]:
    """Returns the results there are, or empty ones.

    Raises:
        SystemExit: They were measured with other settings.
    """
    wanted = dataclasses.asdict(settings)
    if fresh or not path.is_file():
        return {"settings": wanted, "machine": {}, "versions": {}, "runs": [], "rows": []}
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if document["settings"] != wanted:
        raise SystemExit(
            f"{path}: measured with {document['settings']}, now {wanted}. Give another --out, the "
            "same settings, or --fresh to measure all again."
        )
    return document


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Returns rows by network, then by tool and its variants as `VARIANTS` has them."""
    networks, keys = list(NETWORKS), [variant.key for variant in VARIANTS]

    def place(row: Row) -> tuple[int, int, int]:
        key = {name: row[name] for name in ("tool", "variant", "scheme")}
        return networks.index(row["network"]), TOOLS.index(row["tool"]), keys.index(key)

    return sorted(rows, key=place)


def jobs(networks: Sequence[str], tools: Sequence[str]) -> Iterator[tuple[str, Variant]]:
    """Yields what to measure, about the longest first: so the lanes end at about one time."""
    for variant in reversed(VARIANTS):
        for network in reversed(networks):
            if variant.tool in tools:
                yield network, variant


def ready(lanes: Executor, place: Place, networks: Sequence[str], tools: Sequence[str]) -> Place:
    """Makes ModelOpt's environment and the inputs of every network, side by side."""
    environment = None
    if MODELOPT in tools:
        folder = place.work / "modelopt-venv"
        environment = lanes.submit(peers_modelopt_venv.python_of, folder)
    for future in [lanes.submit(place.inputs, network) for network in networks]:
        future.result()
    if environment is None:
        return place
    python, reason = environment.result()
    return dataclasses.replace(place, modelopt=python, no_modelopt=reason)


def rows_from(
    lanes: Executor, wanted: Sequence[tuple[str, Variant]], place: Place
) -> Iterator[Row]:
    """Yields rows as they are measured."""
    futures = [lanes.submit(row_of, network, variant, place) for network, variant in wanted]
    for future in as_completed(futures):
        yield future.result()


class Report:
    """The results so far, on the disk after each row."""

    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        self._path, self.document = path, document
        self._began = time.monotonic()
        self._run: Row = {"began": datetime.now(UTC).isoformat(timespec="minutes"), "rows": 0}

    def lacks(self, network: str, variant: Variant, made_with: Mapping[str, str]) -> bool:
        """Whether there is no row that was made with this, and did not fail."""
        now = {"network": network, **variant.key, "made_with": dict(made_with)}
        return not any(now.items() <= row.items() and not row["failed"] for row in self._rows())

    def add(self, row: Row) -> None:
        """Writes a row in the place of the one with its key."""
        self.document["rows"] = ordered(merged(self._rows(), row, KEY))
        self._run["rows"] += 1
        self._write()
        print(line(row), flush=True)

    def time(self, network: str, place: Place) -> None:
        """Times all files of a network together, unless each that can be timed was."""
        own = [row for row in self._rows() if row["network"] == network]
        if all(is_timed(row) for row in own):
            return
        for row in timed(network, own, place):
            self.document["rows"] = merged(self._rows(), row, KEY)
            print(line(row), flush=True)
        self._write()

    def _rows(self) -> list[Row]:
        rows: list[Row] = self.document["rows"]
        return rows

    def _write(self) -> None:
        self.document["machine"] = machine()
        self._run["seconds"] = round(time.monotonic() - self._began)
        runs = self.document["runs"]
        if not (runs and runs[-1] is self._run):
            runs.append(self._run)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, (json.dumps(self.document, indent=1) + "\n").encode())


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
