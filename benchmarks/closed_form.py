r"""What weighed ranges and the settings of closed-form rounding bring, on images that choose.

    python benchmarks/closed_form.py --out benchmarks/results/closed_form.json \
        --network mobilenet_v2 --scheme w4a8 w4a4 --settings default "weigh=False"

Each row equalises, calibrates and rounds one network and judges KL(float || quantized) on the tune
images: mean, median, and the mean without the highest twentieth, because a few images own the mean.
No row looks at the images that results are reported on. Rows of the same images are compared;
those that are there already are not measured again. Needs the data folder beside the checkout.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from real_networks import RealNetwork, load
from torch import Tensor, nn

from fdda_deploy.pipeline.quantization import clipping
from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.clipping import worthwhile_clips
from fdda_deploy.pipeline.quantization.closed_form import RoundingSettings, round_network
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.equalize import equalize
from fdda_deploy.pipeline.quantization.weighed_values import WeighedValues, weighed_values
from fdda_deploy.pipeline.stages.rounding import (
    CLIPS_BELOW,
    DENSE_EXPONENT,
    ENOUGH_WEIGHED_FOR_8_BITS,
    EQUALIZE_IMAGES,
    WEIGHED_IMAGES,
)
from fdda_deploy.quant.scheme import scheme_from_name

CPU = torch.device("cpu")
TRIMMED = 0.95


def main() -> None:
    """Measures what is asked for and adds it to the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", nargs="*", default=["mobilenet_v2", "mobilenet_v1_075"])
    parser.add_argument("--scheme", nargs="*", default=["w8a8", "w4a8", "w4a4"])
    parser.add_argument("--settings", nargs="*", default=["default", "weigh=False"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--images", type=int, default=256)
    arguments = parser.parse_args()
    rows = []
    if arguments.out.is_file():
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    for name in arguments.network:
        for seed in arguments.seeds:
            real = load(name, num_calib=arguments.images, num_tune=500, seed=seed)
            for scheme in arguments.scheme:
                for text in arguments.settings:
                    key = {
                        "network": name,
                        "scheme": scheme,
                        "settings": text,
                        "seed": seed,
                        "images": len(real.calib),
                    }
                    if any(key.items() <= row.items() for row in rows):
                        continue
                    rows.append({**key, **_measured(real, scheme, _settings(text), seed)})
                    document = json.dumps({"rows": rows}, indent=1) + "\n"
                    arguments.out.write_text(document, encoding="utf-8")
                    print(rows[-1], flush=True)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a row differs in: how weights are rounded, and whether errors of ranges are weighed."""

    rounding: RoundingSettings
    weigh: bool = True


def _settings(text: str) -> Settings:
    """Returns ``name=value,name=value`` as settings; ``default`` changes nothing."""
    pairs = [] if text == "default" else [pair.split("=") for pair in text.split(",")]
    values = {name: ast.literal_eval(value) for name, value in pairs}
    weigh = values.pop("weigh", True)
    return Settings(RoundingSettings(**values), weigh)


def _measured(real: RealNetwork, scheme: str, settings: Settings, seed: int) -> dict[str, float]:
    start = time.perf_counter()
    network = _rounded(real, scheme, settings, seed)
    seconds = time.perf_counter() - start
    images, labels = real.tune
    wanted, got = _log_p(real.graph.module, images), _log_p(network, images)
    kl = (wanted.exp() * (wanted - got)).sum(1).sort().values
    correct = [100 * float((x.argmax(1) == labels).float().mean()) for x in (wanted, got)]
    return {
        "n": len(labels),
        "kl_mean": float(kl.mean()),
        "kl_median": float(kl.median()),
        "kl_trimmed_mean": float(kl[: int(TRIMMED * len(kl))].mean()),
        "float_top1": correct[0],
        "drop": correct[0] - correct[1],
        "agreement": 100 * float((wanted.argmax(1) == got.argmax(1)).float().mean()),
        "seconds": seconds,
        "threads": torch.get_num_threads(),
    }


def _rounded(real: RealNetwork, scheme: str, settings: Settings, seed: int) -> QuantNetwork:
    """Returns the network as ``--effort fast`` makes it, but with these settings."""
    bits = scheme_from_name(scheme)
    weights_pay = bits.weight_bits < 8 and bits.act_bits >= 8
    clips = bits.act_bits < CLIPS_BELOW
    reference = copy.deepcopy(real.graph.module)
    batches = torch.split(real.calib, 8)
    few = batches[: (WEIGHED_IMAGES if clips else ENOUGH_WEIGHED_FOR_8_BITS) // 8]
    with _alike() if not settings.weigh else contextlib.nullcontext():
        equalize(
            reference,
            torch.split(real.calib[:EQUALIZE_IMAGES], 8),
            dense=0.0 if weights_pay else DENSE_EXPONENT,
            clips=worthwhile_clips(reference, few, bits.act_bits, seed=seed) if clips else None,
            center=bits.act_bits >= 8 and not weights_pay,
        )
    network = real.converted(scheme, reference)
    names = {network.names.fx_from_tensor[p.tensor] for p in network.placement.activations}
    weighed = weighed_values(reference, names, few, seed=seed) if settings.weigh else {}
    calibrate(network, torch.split(real.calib, 32), device=CPU, weighed=weighed)
    round_network(network, reference, batches, settings=settings.rounding, device=CPU, seed=seed)
    return network


@contextlib.contextmanager
def _alike() -> Iterator[None]:
    """Has every value count the same where channels are clipped."""

    def equal(*args: Any, **more: Any) -> dict[str, WeighedValues]:
        found = weighed_values(*args, **more)
        return {
            name: dataclasses.replace(sample, weights=torch.ones_like(sample.weights))
            for name, sample in found.items()
        }

    with mock.patch.object(clipping, "weighed_values", equal):
        yield


@torch.inference_mode()
def _log_p(network: nn.Module, images: Tensor) -> Tensor:
    parts = [network(batch) for batch in torch.split(images, 8)]
    return torch.cat(parts).log_softmax(dim=1)


if __name__ == "__main__":
    main()
