r"""What the settings of closed-form rounding bring, on images that choose.

    python benchmarks/closed_form.py --out benchmarks/results/closed_form.json \
        --network mobilenet_v2 --scheme w4a8 w4a4 --settings default "importance=False"

Each row equalises, calibrates and rounds one network and judges KL(float || quantized) on the tune
images: mean, median, and the mean without the highest twentieth, because a few images own the mean.
No row looks at the images that results are reported on. Rows of the same images are compared;
those that are there already are not measured again. Needs the data folder beside the checkout.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import time
from pathlib import Path

import torch
from real_networks import RealNetwork, load
from torch import Tensor, nn

from fdda_deploy.pipeline.quantization.calibrate import calibrate
from fdda_deploy.pipeline.quantization.closed_form import RoundingSettings, round_network
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.equalize import equalize
from fdda_deploy.pipeline.stages.rounding import DENSE_EXPONENT, EQUALIZE_IMAGES
from fdda_deploy.quant.scheme import scheme_from_name

CPU = torch.device("cpu")
TRIMMED = 0.95


def main() -> None:
    """Measures what is asked for and adds it to the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", nargs="*", default=["mobilenet_v2", "mobilenet_v1_075"])
    parser.add_argument("--scheme", nargs="*", default=["w8a8", "w4a8", "w4a4"])
    parser.add_argument("--settings", nargs="*", default=["default", "importance=False"])
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


def _settings(text: str) -> RoundingSettings:
    """Returns ``name=value,name=value`` as settings; ``default`` changes nothing."""
    pairs = [] if text == "default" else [pair.split("=") for pair in text.split(",")]
    return RoundingSettings(**{name: ast.literal_eval(value) for name, value in pairs})


def _measured(
    real: RealNetwork, scheme: str, settings: RoundingSettings, seed: int
) -> dict[str, float]:
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


def _rounded(real: RealNetwork, scheme: str, settings: RoundingSettings, seed: int) -> QuantNetwork:
    """Returns the network as ``--effort fast`` makes it, but with these settings."""
    bits = scheme_from_name(scheme)
    weights_pay = bits.weight_bits < 8 and bits.act_bits >= 8
    reference = copy.deepcopy(real.graph.module)
    equalize(
        reference,
        torch.split(real.calib[:EQUALIZE_IMAGES], 8),
        dense=0.0 if weights_pay else DENSE_EXPONENT,
        act_bits=bits.act_bits,
    )
    network = real.converted(scheme, reference)
    calibrate(network, torch.split(real.calib, 32), device=CPU)
    batches = torch.split(real.calib, 8)
    round_network(network, reference, batches, settings=settings, device=CPU, seed=seed)
    return network


@torch.inference_mode()
def _log_p(network: nn.Module, images: Tensor) -> Tensor:
    parts = [network(batch) for batch in torch.split(images, 8)]
    return torch.cat(parts).log_softmax(dim=1)


if __name__ == "__main__":
    main()
