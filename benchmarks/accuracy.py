r"""What quantization costs on real networks: scheme by effort by seed, on the same test images.

    python benchmarks/accuracy.py --out benchmarks/results/accuracy.json \
        --network mobilenet_v2 --scheme w4a8 --effort fast --seeds 0 1 2

Each row is one `fdda-deploy build` without synthetic images for ``--target trt``, so that depthwise
layers are quantized too. Rows are added to the JSON file that is there; one that is there already
is not measured again. Needs the data folder beside the checkout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from main_job import JOBS, measured

NETWORKS = ["mobilenet_v2", "mobilenet_v1_075", "cifar_resnet20", "cifar_resnet56"]
JOBS["cifar_resnet56"] = [part.replace("resnet20", "resnet56") for part in JOBS["cifar_resnet20"]]
EXTRA = ["--target", "trt", "--recipe", "none", "--quiet"]


def main() -> None:
    """Measures what is asked for and prints mean and spread over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", nargs="*", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--scheme", nargs="*", default=["w8a8", "w4a8", "w4a4"])
    parser.add_argument("--effort", nargs="*", default=["fast", "normal"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--calib-limit", type=int, default=500)
    arguments = parser.parse_args()
    rows = []
    if arguments.out.is_file():
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    wanted = [
        {"network": n, "scheme": s, "effort": e, "seed": seed, "images": arguments.calib_limit}
        for n in arguments.network
        for s in arguments.scheme
        for e in arguments.effort
        for seed in arguments.seeds
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for key in wanted:
        if any(key.items() <= row.items() for row in rows):
            continue
        rows.append(_row(key))
        arguments.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    _print(rows)


def _row(key: dict[str, object]) -> dict[str, object]:
    extra = [*EXTRA, "--effort", str(key["effort"]), "--seed", str(key["seed"])]
    extra += ["--calib-limit", str(key["images"])]
    with tempfile.TemporaryDirectory() as scratch:
        row = measured(str(key["network"]), str(key["scheme"]), Path(scratch), extra)
    return {**row, **key}


def _print(rows: list[dict[str, object]]) -> None:
    """Prints mean and range of the drop for each network, scheme and effort."""
    cells: dict[tuple[object, ...], list[dict[str, object]]] = {}
    for row in rows:
        cells.setdefault((row["network"], row["scheme"], row["effort"], row["images"]), []).append(
            row
        )
    for cell, found in cells.items():
        drops = [float(row["drop"]["mean"]) for row in found]  # type: ignore[index]  # parsed JSON
        stages = [sum(row["stage_seconds"].values()) for row in found]  # type: ignore[attr-defined]
        print(
            *cell,
            f"drop {statistics.mean(drops):.2f} ({min(drops):.2f} to {max(drops):.2f}), "
            f"{len(drops)} seeds, n = {found[0]['n']}, median {statistics.median(stages):.0f} s",
        )


if __name__ == "__main__":
    main()
