"""Latency: of a network on its road, or of .onnx files and plans that anybody wrote."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fdda_deploy.cli.options import (
    Options,
    UsageFaultError,
    one_of,
    option,
    require_one_of,
    takes_options,
)
from fdda_deploy.cli.results import print_json, print_table
from fdda_deploy.cli.stages import examples, run_until
from fdda_deploy.config.engine import BACKENDS

if TYPE_CHECKING:
    from fdda_deploy.engines.bench_files import FileRecord
    from fdda_deploy.engines.bench_statistics import LatencySummary
    from fdda_deploy.engines.layer_profile import LayerTime
    from fdda_deploy.engines.trt_api import Flavour
    from fdda_deploy.engines.trtexec_json import TrtexecTimes

app = typer.Typer()

FILES = "Bench of files"
SUFFIXES = (".onnx", ".plan", ".engine", ".trt")
PROVIDERS = ("cpu", "cuda", "tensorrt")
"""`engines.ort_run.PROVIDERS`, known without loading an engine."""
NOT_MEASURED = "not measured"
LAYER_RUNS = 100


@dataclass(frozen=True)
class BenchFlags(Options):
    """What `bench` takes beside a network's options; all of it is for files alone."""

    more: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...",
            help=".onnx files and plans, measured in turns.",
            show_default=False,
        ),
    ] = None
    batches: Annotated[str | None, option(FILES, "To sweep: 1,8,32; default 1.", "LIST")] = None
    seconds: Annotated[float | None, option(FILES, "Per file and batch; default 3.", "S")] = None
    feed: Annotated[Path | None, option(FILES, "One batch, not random.", "FILE.npz")] = None
    provider: Annotated[str | None, one_of(FILES, PROVIDERS, "ONNX Runtime's")] = None
    cuda_graph: Annotated[
        bool | None,
        option(FILES, "Launch plans as CUDA graphs.", flag="--cuda-graph/--no-cuda-graph"),
    ] = None
    transfers: Annotated[
        bool | None,
        option(FILES, "Copy in and out in every run.", flag="--transfers/--no-transfers"),
    ] = None
    spin_wait: Annotated[
        bool | None,
        option(FILES, "Poll for the end of a run.", flag="--spin-wait/--no-spin-wait"),
    ] = None
    plot: Annotated[Path | None, option(FILES, "Throughput by latency, .svg or .png.", "FILE")] = (
        None
    )
    export_times: Annotated[
        Path | None, option(FILES, "Every run of the first file, as trtexec writes.", "FILE.json")
    ] = None
    against: Annotated[
        Path | None, option(FILES, "trtexec's --exportTimes, to compare with.", "FILE.json")
    ] = None
    layers: Annotated[
        bool | None, option(FILES, "Time each layer of one plan instead.", flag="--layers")
    ] = None
    layer_profile: Annotated[
        Path | None, option(FILES, "trtexec's --exportProfile, to explain.", "FILE.json")
    ] = None
    layer_info: Annotated[
        Path | None, option(FILES, "Its --exportLayerInfo, for precisions.", "FILE.json")
    ] = None


_FILE_FLAGS = {f.name for f in dataclasses.fields(BenchFlags)} - {
    f.name for f in dataclasses.fields(Options)
}


@app.command(
    epilog=examples(
        "bench digits --backend ort-cpu",
        "bench model.fp32.onnx model.qdq.onnx --batches 1,8 --plot sweep.svg",
        "bench engine.plan --cuda-graph --export-times times.json",
        "bench --layer-profile profile.json --layer-info layers.json",
    )
)
@takes_options
def bench(options: BenchFlags) -> None:
    """Measure latency; what cannot be measured here reads "not measured"."""
    names = [*([options.model] if options.model else []), *(options.more or [])]
    if options.layer_profile is not None:
        _explain_profile(options)
    elif options.layers and len(names) == 1 and Path(names[0]).suffix.lower() != ".onnx":
        _time_layers(options, Path(names[0]))
    elif options.layers:
        raise UsageFaultError("bench --layers: name one plan, and nothing else.")
    elif names and all(Path(name).suffix.lower() in SUFFIXES for name in names):
        _bench_files(options, [Path(name) for name in names])
    else:
        _bench_network(options)


def _bench_network(options: BenchFlags) -> None:
    if (options.model or "").lower().endswith(".json"):
        raise UsageFaultError(
            f"bench {options.model}: files of trtexec are given by a flag: --against for its "
            "times, beside an .onnx file or plan; --layer-profile and --layer-info for its layers."
        )
    given = sorted(name for name in _FILE_FLAGS if getattr(options, name) is not None)
    if given:
        flag = "a second MODEL" if given == ["more"] else f"--{given[0].replace('_', '-')}"
        raise UsageFaultError(f"bench: {flag} goes with {', '.join(SUFFIXES)} files alone.")
    shared = {f.name: getattr(options, f.name) for f in dataclasses.fields(Options)}
    run_until("bench", Options(**shared))


def _bench_files(options: BenchFlags, paths: list[Path]) -> None:
    from fdda_deploy.durable import write_whole
    from fdda_deploy.engines.bench import BenchOptions
    from fdda_deploy.engines.bench_files import bench_files
    from fdda_deploy.engines.open_file import OpenOptions
    from fdda_deploy.engines.trtexec_json import load_trtexec_times, times_to_json
    from fdda_deploy.pipeline.report.latency_plot import write_latency_plot

    against = load_trtexec_times(options.against) if options.against else None
    seconds = 3.0 if options.seconds is None else options.seconds
    require_one_of("--provider", options.provider, PROVIDERS)
    found = bench_files(
        paths,
        _batches(options.batches),
        OpenOptions(
            provider=options.provider or "cpu",
            num_threads=options.threads,
            flavour=_flavour(options.backend),
            cuda_graph=bool(options.cuda_graph),
            spin_wait=bool(options.spin_wait),
        ),
        BenchOptions(min_seconds=seconds, transfers=options.transfers is not False),
        feed=options.feed,
    )
    if options.export_times is not None:
        times = times_to_json(found[0].record.times)
        write_whole(options.export_times, json.dumps(times, allow_nan=False).encode())
    if options.plot is not None:
        write_latency_plot(options.plot, _sweeps(found))
    if options.json_output:
        print_json(_document(found, against))
    elif not options.quiet:
        _print_records(found, against)


def _document(found: list[FileRecord], against: TrtexecTimes | None) -> dict[str, object]:
    """Returns everything as JSON values; null is "not measured"."""
    from fdda_deploy.engines.bench_environment import bench_environment

    return {
        "environment": dataclasses.asdict(bench_environment()),
        "records": [
            {
                "file": str(entry.path),
                "bytes": entry.num_bytes,
                "runs": entry.runs,
                "qdq_coverage": _coverage(entry.path),
                **entry.record.to_json(),
            }
            for entry in found
        ],
        "trtexec": None if against is None else dataclasses.asdict(against),
    }


def _coverage(path: Path) -> dict[str, int] | None:
    """Returns the Q/DQ coverage of an ONNX file; None for a plan, which does not tell."""
    if path.suffix.lower() != ".onnx":
        return None
    import onnx

    from fdda_deploy.exporters.coverage import qdq_coverage

    return dataclasses.asdict(qdq_coverage(onnx.load(path, load_external_data=False)))


def _print_records(found: list[FileRecord], against: TrtexecTimes | None) -> None:
    columns = ("median", "p90", "p95", "p99", "variation", "images/s")
    rows: list[tuple[str, ...]] = [("file", "batch", "on", *columns, "GPU compute", "ratio")]
    first: dict[int, float] = {}
    for entry in found:
        record = entry.record
        median = record.latency.median_ms
        base = first.setdefault(record.batch, median)
        compute = record.gpu_compute
        rows.append(
            (
                record.what,
                str(record.batch),
                record.runs_on,
                *_cells(record.latency),
                f"{record.images_per_second:.1f}",
                NOT_MEASURED if compute is None else f"{compute.median_ms:.3f} ms",
                f"{median / base:.3f}",
            )
        )
    if against is not None:
        queries = against.queries_per_second
        rate = NOT_MEASURED if queries is None else f"{queries:.1f} queries/s"
        compute_cell = f"{against.compute.median_ms:.3f} ms"
        rows.append(("trtexec", "", "GPU", *_cells(against.latency), rate, compute_cell))
    print_table(rows)


def _cells(latency: LatencySummary) -> tuple[str, ...]:
    times = (latency.median_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms)
    unstable = " unstable" if latency.unstable else ""
    return (*(f"{ms:.3f} ms" for ms in times), f"{latency.variation_percent:.1f} %{unstable}")


def _explain_profile(options: BenchFlags) -> None:
    """Prints the layers of a profile with their precision, the slowest first."""
    from fdda_deploy.engines.layer_info import ADVICE as INFO_ADVICE
    from fdda_deploy.engines.layer_info import layers_from_json
    from fdda_deploy.engines.layer_profile import (
        ADVICE,
        profile_from_json,
    )
    from fdda_deploy.engines.trtexec_json import load_json

    assert options.layer_profile is not None
    info = options.layer_info
    layers = (
        () if info is None else layers_from_json(load_json(info, INFO_ADVICE), str(info)).layers
    )
    document = load_json(options.layer_profile, ADVICE)
    _print_layers(profile_from_json(document, str(options.layer_profile), layers), options)


def _time_layers(options: BenchFlags, path: Path) -> None:
    from fdda_deploy.engines.feeds import random_feed
    from fdda_deploy.engines.layer_times import time_layers
    from fdda_deploy.engines.open_file import OpenOptions, runner_for
    from fdda_deploy.engines.trt_run import TrtRunner

    with runner_for(path, OpenOptions(flavour=_flavour(options.backend))) as runner:
        assert isinstance(runner, TrtRunner)
        feed = random_feed(runner.inputs, _batches(options.batches)[0], seed=0)
        _print_layers(time_layers(runner, feed, LAYER_RUNS), options)


def _print_layers(profile: tuple[LayerTime, ...], options: BenchFlags) -> None:
    from fdda_deploy.engines.layer_profile import milliseconds_by_precision

    by_precision = milliseconds_by_precision(profile)
    if options.json_output:
        rows = [dataclasses.asdict(row) for row in profile]
        print_json({"layers": rows, "ms_by_precision": by_precision})
        return
    table = [("ms", "%", "precision", "finding", "layer")]
    for row in sorted(profile, key=lambda row: -row.mean_ms):
        precision, finding = row.precision or "unknown", row.finding or ""
        table.append((f"{row.mean_ms:.4f}", f"{row.percent:.1f}", precision, finding, row.name))
    print_table(table)
    print_table([("",), *((f"{ms:.4f}", name) for name, ms in by_precision.items())])


def _sweeps(found: list[FileRecord]) -> dict[str, list[tuple[int, float, float]]]:
    sweeps: dict[str, list[tuple[int, float, float]]] = {}
    for entry in found:
        record = entry.record
        point = (record.batch, record.latency.median_ms, record.images_per_second)
        sweeps.setdefault(record.what, []).append(point)
    return sweeps


def _batches(text: str | None) -> list[int]:
    words = (text or "1").split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise UsageFaultError(f"--batches {text}: want whole numbers above 0, for instance 1,8,32.")
    return sorted({int(word) for word in words})


def _flavour(backend: str | None) -> Flavour | None:
    require_one_of("--backend", backend, BACKENDS)
    known: dict[str | None, Flavour] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
    return known.get(backend)
