"""docs/peers.md, its plot and the README's table, from the results of benchmarks/peers.py."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peers_plot import draw
from peers_tools import MODELOPT, ORT, OURS, PEERS
from peers_verdict import (
    COLUMNS,
    CPU_SECONDS,
    DROP,
    FILE,
    KL,
    LATENCY,
    PEAK,
    PLAN,
    REFUSAL,
    Column,
    Row,
    best,
    ours_in,
    verdict,
)

from fdda_deploy.durable import write_whole

PLOT = "images/peers.svg"
BLOCK = re.compile(r"<!-- peers -->\n.*?<!-- /peers -->", re.DOTALL)
README_COLUMNS = (DROP, KL, CPU_SECONDS, PEAK, REFUSAL, PLAN, LATENCY)

_HEAD = """# Against other tools

Written by `python benchmarks/peers.py --out benchmarks/results/peers.json --page`; do not edit.

Each row is one quantization of the same folded float network with the same {images} calibration
images, in a process of its own, {lanes}: {machine}, {threads} each. {runs}
The load was {load} processes that want a CPU; where that is more than the CPUs, wall times are
longer than the work, and CPU times a little. Versions: {versions}.

- `drop`: top-1 of the float network less that of the graph as written, in points, on images that
  nothing was chosen by, with the paired 95 % interval.
- `KL`: mean KL(float || quantized) of the predictions, on the same images.
- `CPU s`, `wall s`, `peak MiB`: of the process that quantizes, from its start to its end. Ours
  reads photographs and traces the network in that time; the others are given arrays and the graph.
- `RTX takes it`, `plan / fp32`: whether TensorRT-RTX's builder takes the file as it stands, and the
  plan's bytes against the float network's. No plan was run: GPU latency is **not measured**.
- `measured`: the day, and of ours the first digits of the digest of the sources it was made with.
- `latency`: ONNX Runtime on the CPU, batch 1, all its optimizations, against the float graph; all
  files of a network take turns of 50 ms in one session.
- ONNX Runtime: Q/DQ, weights per channel, else `quantize_static`'s defaults; with `uint8`, the
  activations that its documentation advises for CPUs. ModelOpt: the defaults (entropy, FP16 outside
  the pairs), and `max` with FP32 outside, which its CPU latency should be judged by. Ours: effort
  `fast`, no synthetic images, for three targets. ModelOpt and ONNX Runtime measure ranges; ours
  also equalises channels and rounds each layer's weights by second-order statistics, which is
  where its time and memory go.

![Every row, a panel for each column]({plot})

## Win, tie or loss

Ours against each tool at w8a8, our figure first. Of theirs the best row of each column counts. Of
ours that for the same purpose: target `ort-cpu` against ONNX Runtime and `trt` against ModelOpt; in
the columns on the builder `rtx`, and for CPU latency `ort-cpu`, against both. Tie: the paired
interval of the difference in top-1 has zero in it; other figures within 5 %.
"""
_DETAIL = [
    *("tool", "way", "scheme", "top-1", "drop (95 %)", "KL", "CPU s", "wall s", "peak MiB"),
    *("RTX takes it", "plan / fp32", "latency", "file / float"),
    "measured",
]


def write_page(document: Mapping[str, Any], root: Path) -> None:
    """Writes the page, the plot and the README's table into a checkout."""
    draw(document["rows"], root / "docs" / PLOT)
    write_whole(root / "docs/peers.md", page(document).encode())
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    write_whole(readme, with_block(text, readme_table(document["rows"])).encode())


def with_block(text: str, table: str) -> str:
    """Returns the README with a new table between its marks.

    Raises:
        ValueError: It has no marks.
    """
    block = f"<!-- peers -->\n{table}<!-- /peers -->"
    found, count = BLOCK.subn(lambda _: block, text)
    if count != 1:
        raise ValueError(
            f"README: {count} blocks between <!-- peers --> and <!-- /peers -->, want 1."
        )
    return found


def page(document: Mapping[str, Any]) -> str:
    """Returns docs/peers.md."""
    rows: list[Row] = document["rows"]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    parts = [_head(document), verdict_table(rows), "", losses(rows), ""]
    for network in networks:
        own = [row for row in rows if row["network"] == network]
        count = next((row["n"] for row in own if "n" in row), 0)
        top1 = next((f", float top-1 {row['float_top1']:.1f}" for row in own if "n" in row), "")
        parts += [f"## {network}", "", f"{count} test images{top1}.", ""]
        parts += [table(_DETAIL, [_detail(row) for row in own]), "", *_words(own)]
    return "\n".join(parts).rstrip() + "\n"


def compared(rows: Sequence[Row]) -> Iterator[tuple[str, str, Column, Row | None, Row | None]]:
    """Yields (network, peer, column, our row, the peer's) for everything that is compared."""
    for network in dict.fromkeys(row["network"] for row in rows):
        for peer in PEERS:
            for column in COLUMNS:
                ours = ours_in(rows, network, column, peer)
                yield network, peer, column, ours, best(rows, network, peer, column)


def verdict_table(rows: Sequence[Row]) -> str:
    """Returns a line for each network and peer: in every column the verdict and both figures."""
    lines: dict[tuple[str, str], list[str]] = {}
    for network, peer, column, ours, theirs in compared(rows):
        said = verdict(column, ours, theirs)
        cell = f"{said}: {column.shown(ours)}, {column.shown(theirs)}"
        lines.setdefault((network, peer), []).append(cell)
    head = ["network", "against", *(column.name for column in COLUMNS)]
    return table(head, [[*who, *cells] for who, cells in lines.items()])


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def losses(rows: Sequence[Row]) -> str:
    """Returns in words how many columns are won, tied and lost, and which are lost."""
    lost: dict[str, list[str]] = {}
    counts = {"win": 0, "tie": 0, "loss": 0, "not measured": 0}
    asked: Counter[str] = Counter()
    for network, peer, column, ours, theirs in compared(rows):
        said = verdict(column, ours, theirs)
        counts[said] += 1
        asked[column.name] += 1
        if said == "loss":
            lost.setdefault(column.name, []).append(f"{network} against {peer}")
    total = f"{counts['win']} won, {counts['tie']} tied, {counts['loss']} lost"
    if counts["not measured"]:
        total += f", {counts['not measured']} not measured"
    if not lost:
        return f"In sum: {total}."
    where = "; ".join(
        f"**{name}** ({'everywhere' if len(cases) == asked[name] else ', '.join(cases)})"
        for name, cases in lost.items()
    )
    return f"In sum: {total}. Lost: {where}."


def readme_table(rows: Sequence[Row]) -> str:
    """Returns the README's table: of each other tool the best of every column, ours by purpose."""
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        for peer in PEERS:
            cells = [column.shown(best(rows, network, peer, column)) for column in README_COLUMNS]
            lines.append([network, peer, *cells])
        for peer, purpose in ((MODELOPT, "for TensorRT"), (ORT, "for the CPU")):
            cells = [
                column.shown(ours_in(rows, network, column, peer)) if _fits(column, peer) else ""
                for column in README_COLUMNS
            ]
            lines.append([network, f"**ours**, {purpose}", *cells])
    head = ["network", "tool", *(column.name for column in README_COLUMNS)]
    return f"{table(head, lines)}\n\n{losses(rows)}\n"


def _fits(column: Column, peer: str) -> bool:
    """Whether a column is about the files that are made for a peer's purpose."""
    return column not in ((LATENCY,) if peer == MODELOPT else (REFUSAL, PLAN))


def _head(document: Mapping[str, Any]) -> str:
    settings, machine = document["settings"], document["machine"]
    threads = "one thread" if settings["threads"] == 1 else f"{settings['threads']} threads"
    return _HEAD.format(
        versions=_versions(document["versions"]),
        machine=f"{machine['cpu']}, {machine['cpus']} CPUs",
        threads=threads,
        images=settings["images"],
        lanes=_lanes(settings.get("lanes", 1)),
        runs=_runs(document.get("runs", [])),
        load=_range([row["load_average"] for row in document["rows"]]),
        plot=PLOT,
    )


def _lanes(count: int) -> str:
    return "one after another" if count == 1 else f"{count} at a time on CPUs of their own"


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns how long the command ran for all that is here, its preparations included."""
    if not runs:
        return "How long the command took was not recorded."
    each = [f"{run['rows']} rows in {run['seconds'] / 60:.0f} minutes" for run in runs]
    return f"The command measured {', then '.join(each)}, preparations and latency included."


def _range(figures: Sequence[float]) -> str:
    return f"{min(figures):.0f} to {max(figures):.0f}"


def _versions(versions: Mapping[str, Any]) -> str:
    ours = ", ".join(f"{name} {text}" for name, text in versions[OURS].items())
    parts = [ours, versions["builder"]]
    if "ModelOpt" in versions:
        inside = ", ".join(f"{name} {text}" for name, text in versions["ModelOpt"].items())
        parts.append(f"ModelOpt's environment: {inside}")
    return "; ".join(parts)


def _detail(row: Row) -> list[str]:
    top1 = drop = "not measured"
    if "drop" in row:
        top1, lost = f"{row['top1']:.1f}", row["drop"]
        drop = f"{lost['mean']:.1f} ({lost['low']:.1f} to {lost['high']:.1f})"
    wall = f"{row['seconds']:.0f}" if "seconds" in row else "not measured"
    before = [row["tool"], row["variant"], row["scheme"], top1, drop]
    middle = [KL.shown(row), CPU_SECONDS.shown(row), wall]
    behind = [column.shown(row) for column in (PEAK, REFUSAL, PLAN, LATENCY, FILE)]
    return before + middle + behind + [_measured(row)]


def _measured(row: Row) -> str:
    """Returns the day, and for ours the first digits of the digest of its sources."""
    if "measured_at" not in row:
        return "earlier"
    code = row["made_with"].get("code", "")[:7]
    return f"{row['measured_at'][:10]} {code}".rstrip()


def _words(rows: Sequence[Row]) -> list[str]:
    """Returns what the tools say of files they do not take, each sentence once."""
    heads = {
        "failed": "why there are no figures",
        "ort_words": "accuracy by the ONNX Runtime it was made with, because ours says",
        "rtx_words": "the builder's words",
        "latency_words": "why it was not timed",
    }
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        for field, head in heads.items():
            words = row.get(field)
            if words and not (field == "ort_words" and row["failed"]):
                way = f"{row['variant']} {row['scheme']}"
                found.setdefault((row["tool"], head, _plain(words)), []).append(way)
    lines = [f"- {who} ({'; '.join(ways)}), {head}: {w}" for (who, head, w), ways in found.items()]
    return [*lines, ""] if lines else []


def _plain(text: str) -> str:
    """Returns words of a tool as Markdown that shows them and nothing else."""
    return "`" + " ".join(text.split()).replace("`", "'") + "`"
