"""The main job on the embedded digits and, where they stand beside the checkout, on real networks.

    python benchmarks/main_job.py --out benchmarks/results/main_job.json [--only digits]

Each row is one `fdda-deploy build` in a process and a result folder of its own: accuracy on test
images (paired drop with its 95 % interval), bytes, wall time and peak memory, as its report has it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARED = Path(__file__).parents[2] / "shared" / "data"
IMAGENET = [
    "--calib-data",
    str(SHARED / "images/imagenet_calib.tar"),
    "--eval-data",
    str(SHARED / "images/imagenet_val.tar"),
    "--classes",
    str(SHARED / "images/wnids.txt"),
]
HALF = "0.5,0.5,0.5"
JOBS: dict[str, list[str]] = {
    "digits": ["digits"],
    "cifar_resnet20": [
        f"{SHARED / 'networks.py'}:cifar_resnet20",
        *("--weights", str(SHARED / "weights/cifar_resnet20.pth"), "--input-size", "32"),
        *("--calib-data", f"{SHARED / 'cifar10.npz'}#train", "--calib-limit", "64"),
        *("--eval-data", f"{SHARED / 'cifar10.npz'}#test"),
    ],
    "mobilenet_v2": [
        "mobilenet_v2",
        *("--weights", str(SHARED / "weights/mobilenet_v2.pth")),
        *IMAGENET,
    ],
    "mobilenet_v1_075": [
        f"{SHARED / 'networks.py'}:mobilenet_v1_075",
        *("--weights", str(SHARED / "weights/mobilenet_v1_075.pth")),
        *("--mean", HALF, "--std", HALF),
        *IMAGENET,
    ],
}
SCHEMES = {
    "digits": ["w8a8", "w4a8", "w4a4"],
    "cifar_resnet20": ["w8a8", "w4a8", "w4a4"],
    "mobilenet_v2": ["w8a8"],
    "mobilenet_v1_075": ["w8a8"],
}


def measured(name: str, scheme: str, out: Path, extra: list[str]) -> dict[str, object]:
    """Runs one build and returns its row."""
    command = [sys.executable, "-m", "fdda_deploy", "build", *JOBS[name], "--scheme", scheme]
    start = time.perf_counter()
    subprocess.run([*command, "--out", str(out), *extra], check=True)
    seconds = time.perf_counter() - start
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    accuracy = report["accuracy"]
    return {
        "network": name,
        "scheme": scheme,
        "target": report["target"],
        "recipe": report["recipe"],
        "schedule": report["schedule"],
        "seed": report["seed"],
        "n": accuracy["quantized"]["n"],
        "float_top1": accuracy["float"]["top1"],
        "quantized_top1": accuracy["quantized"]["top1"],
        "drop": accuracy["drop"],
        "agreement": accuracy["agreement"],
        "parity": report["parity"],
        "calibrated_on": report["data"]["calibrated_on"],
        "bytes": report["bytes"],
        "wall_seconds": seconds,
        "stage_seconds": {s["name"]: s["seconds"] for s in report["stages"]},
        "peak_rss_mib": report["peak_rss_mib"],
        "gpu_latency_ms": report["bench"]["gpu"],
        "versions": report["versions"],
    }


def main() -> None:
    """Runs the jobs, prints the table, writes the JSON after each row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--scheme", nargs="*", help="instead of the default ones")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "gpu": "none"}
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.only:
            if name != "digits" and not SHARED.is_dir():
                print(f"{name}: skipped, {SHARED} is absent")
                continue
            for scheme in arguments.scheme or SCHEMES[name]:
                folder = Path(scratch) / f"{name}-{scheme}"
                extra = ["--seed", str(arguments.seed), "--quiet"]
                rows.append(measured(name, scheme, folder, extra))
                document = {"machine": machine, "rows": rows}
                arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
                print(_line(rows[-1]), flush=True)


def _line(row: dict[str, object]) -> str:
    drop = row["drop"]
    assert isinstance(drop, dict)
    return (
        f"{row['network']:18} {row['scheme']:5} {row['float_top1']:6.2f} -> "
        f"{row['quantized_top1']:6.2f}  drop {drop['mean']:5.2f} "
        f"[{drop['low']:.2f}, {drop['high']:.2f}]  {row['wall_seconds']:6.0f} s  "
        f"{row['peak_rss_mib']:6.0f} MiB"
    )


if __name__ == "__main__":
    main()
