"""What each step of quantization brings, on one network, from nearest rounding to distillation.

    python benchmarks/ablation.py --out benchmarks/results/ablation.json

cifar_resnet20 at w4a4 for ``--target trt``; 512 training images to work on. Judged by
KL(float || quantized) and top-1 on 1000 other training images, which choose, and on the 1000 test
images, which nothing here chooses by. Needs the data folder beside the checkout.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from real_networks import load
from torch import Tensor

from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.closed_form import RoundingSettings, round_network
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.easyquant import search_scales
from fdda_deploy.pipeline.quantization.equalize import equalize
from fdda_deploy.pipeline.quantization.finetune import FinetuneSettings, finetune
from fdda_deploy.pipeline.quantization.layers import correct_biases
from fdda_deploy.pipeline.quantization.reconstruct import reconstruct
from fdda_deploy.pipeline.quantization.reconstruction_settings import (
    RECONSTRUCTION,
    ReconstructionSettings,
)

CPU = torch.device("cpu")
NUM_IMAGES = 512
SHORT = RECONSTRUCTION["short"]
LAYERWISE = dataclasses.replace(SHORT, granularity="layer", scale_lr=0.0, step_lr=0.0)


class Bench:
    """One network and its images; each row starts from a freshly calibrated quantized network."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.real = load("cifar_resnet20", num_calib=NUM_IMAGES, num_tune=1000, seed=seed)
        self.images = self.real.calib
        self.reference = self.real.graph.module

    def network(self, *, equalised: bool = False) -> QuantNetwork:
        """Returns a calibrated network, rounded to nearest."""
        self.reference = self.real.graph.module
        if equalised:
            self.reference = copy.deepcopy(self.reference)
            equalize(self.reference, torch.split(self.images[:256], 8))
        network = self.real.converted("w4a4", self.reference)
        calibrate(network, torch.split(self.images, 32))
        return network

    def closed_form(self, network: QuantNetwork) -> None:
        """Rounds in closed form."""
        batches = torch.split(self.images, 8)
        round_network(
            network,
            self.reference,
            batches,
            settings=RoundingSettings(),
            device=CPU,
            seed=self.seed,
        )

    def reconstruct(self, network: QuantNetwork, settings: ReconstructionSettings) -> None:
        """Reconstructs."""
        reconstruct(
            network,
            self.reference,
            torch.split(self.images, 8),
            settings=settings,
            device=CPU,
            seed=self.seed,
            memory_limit_bytes=2**31,
        )

    def distil(self, network: QuantNetwork) -> None:
        """Distils scales, activation steps and biases."""

        def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            picked = torch.randint(NUM_IMAGES - 64, (count,), generator=generator)
            return self.images[picked], torch.full((count,), -1)

        settings = FinetuneSettings(300, temperature=2.0, trainable="scales-and-biases")
        teacher = copy.deepcopy(self.real.graph.module)
        held_out = self.images[-64:]
        finetune(network, teacher, [draw], held_out, settings, device=CPU, seed=self.seed)

    def rows(self) -> dict[str, Callable[[], QuantNetwork]]:
        """Returns every row as what makes its network."""

        def with_steps(*steps: Callable[[QuantNetwork], object], equalised: bool = False) -> Row:
            def made() -> QuantNetwork:
                network = self.network(equalised=equalised)
                for step in steps:
                    step(network)
                return network

            return made

        def block(**changes: float) -> Callable[[QuantNetwork], object]:
            return lambda n: self.reconstruct(n, dataclasses.replace(SHORT, **changes))  # type: ignore[arg-type]  # floats, as the fields

        fixed = {"scale_lr": 0.0, "step_lr": 0.0}
        return {
            "nearest": with_steps(),
            "nearest, biases corrected": with_steps(
                lambda n: correct_biases(n, self.reference, self.images[:128], CPU)
            ),
            "scale search (EasyQuant)": with_steps(
                lambda n: search_scales(
                    n, self.reference, self.images[:50], self.images[-64:], device=CPU
                )
            ),
            "closed form": with_steps(self.closed_form),
            "equalised, closed form": with_steps(self.closed_form, equalised=True),
            "AdaRound by layer, from nearest": with_steps(lambda n: self.reconstruct(n, LAYERWISE)),
            "by block, from nearest": with_steps(block(**fixed)),
            "by block with QDrop, from nearest": with_steps(block(**fixed, drop=0.5)),
            "by block, learned scales and steps, from nearest": with_steps(block()),
            "equalised, closed form, block with learned scales": with_steps(
                self.closed_form, block(), equalised=True
            ),
            "equalised, closed form, distillation (--effort normal)": with_steps(
                self.closed_form, self.distil, equalised=True
            ),
            "equalised, closed form, block, distillation": with_steps(
                self.closed_form, block(), self.distil, equalised=True
            ),
        }


Row = Callable[[], QuantNetwork]


def main() -> None:
    """Measures every row and writes the JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    for seed in arguments.seeds:
        bench = Bench(seed)
        for name, made in bench.rows().items():
            start = time.perf_counter()
            network = made()
            seconds = time.perf_counter() - start
            rows.append(
                {"row": name, "seed": seed, "seconds": seconds, **bench.real.judged(network)}
            )
            arguments.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
            print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
