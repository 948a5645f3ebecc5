"""Which observer the activation ranges should come from: every one on every network.

    python benchmarks/observers.py --out benchmarks/results/observers.json

Weights rounded to nearest, nothing corrected, ``--target trt``. The tune images choose the default;
the val images are there to see whether the choice holds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from real_networks import load

from fdda_deploy.config.sections import OBSERVERS
from fdda_deploy.pipeline.allocator import keep_freed_memory
from fdda_deploy.pipeline.quantization.calibrate import calibrate

NETWORKS = ["cifar_resnet20", "mobilenet_v1_075", "mobilenet_v2"]


def main() -> None:
    """Measures every row and writes the JSON after each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", nargs="*", default=NETWORKS)
    parser.add_argument("--num-calib", type=int, default=256)
    parser.add_argument("--num-tune", type=int, default=250)
    arguments = parser.parse_args()
    keep_freed_memory()
    rows: list[dict[str, object]] = []
    for name in arguments.network:
        real = load(name, num_calib=arguments.num_calib, num_tune=arguments.num_tune)
        for scheme in ("w8a8", "w4a4"):
            for observer in OBSERVERS:
                network = real.converted(scheme)
                start = time.perf_counter()
                calibrate(network, torch.split(real.calib, 8), observer=observer)
                seconds = time.perf_counter() - start
                key = {"network": name, "scheme": scheme, "observer": observer}
                rows.append({**key, "seconds": seconds, **real.judged(network)})
                print(rows[-1], flush=True)
        arguments.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
