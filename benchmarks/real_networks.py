"""The trained networks and labelled images beside the checkout, as the benchmarks use them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx, nn

from fdda_deploy.exporters.float_onnx import FloatGraph, export_float
from fdda_deploy.exporters.placement import place
from fdda_deploy.pipeline.data import open_images, read_classes
from fdda_deploy.pipeline.models import load_float_model
from fdda_deploy.pipeline.network import trace
from fdda_deploy.pipeline.quantization.convert import GraphMap, QuantNetwork, convert
from fdda_deploy.pipeline.quantization.distillation import distillation_loss
from fdda_deploy.pipeline.quantization.fold import fold_batch_norm
from fdda_deploy.quant.scheme import scheme_from_name

SHARED = Path(__file__).parents[2] / "shared" / "data"
HALF = (0.5, 0.5, 0.5)
PARTS = {"calib": "train", "tune": "train", "val": "test"}
FIRST_TUNE = 3000
"""CIFAR training images from here on choose; those before calibrate."""


@dataclass(frozen=True)
class RealNetwork:
    """A float network ready to quantize.

    Attributes:
        name: File name of its weights, without the ending.
        graph: Its folded graph, in torch and ONNX.
        calib: ``(n, C, H, W)`` float32, preprocessed.
        tune: Images that choose, and their labels.
        val: Images that nothing chooses by, and their labels.
    """

    name: str
    graph: FloatGraph
    calib: Tensor
    tune: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]

    def converted(self, scheme: str, module: fx.GraphModule | None = None) -> QuantNetwork:
        """Returns the network, or ``module`` in its place, with quantizers for ``--target trt``."""
        graph = self.graph
        placement = place(
            graph.proto,
            scheme_from_name(scheme),
            "trt",
            torch_tensors=graph.fx_from_tensor,
            parameters=graph.parameter_from_initializer,
        )
        names = GraphMap(graph.fx_from_tensor, graph.fx_from_node, graph.parameter_from_initializer)
        return convert(module or graph.module, placement, names)

    def judged(self, network: nn.Module) -> dict[str, float]:
        """Returns KL(float || quantized) in nats and top-1 in percent on tune and val images."""
        found = {}
        for part, (images, labels) in (("tune", self.tune), ("val", self.val)):
            got, wanted = _logits(network, images), _logits(self.graph.module, images)
            found[f"{part}_kl"] = float(distillation_loss(got, wanted, 1.0))
            found[f"{part}_top1"] = 100 * float((got.argmax(1) == labels).float().mean())
            found[f"{part}_float_top1"] = 100 * float((wanted.argmax(1) == labels).float().mean())
        return found


def load(name: str, *, num_calib: int, num_tune: int, seed: int = 0) -> RealNetwork:
    """Returns ``mobilenet_v2``, ``mobilenet_v1_075``, ``cifar_resnet20`` or ``cifar_resnet56``."""
    own = name != "mobilenet_v2"
    model = load_float_model(
        f"{SHARED / 'networks.py'}:{name}" if own else name,
        weights=str(SHARED / f"weights/{name}.pth"),
        input_size=(32, 32) if name.startswith("cifar") else None,
        mean=HALF if name == "mobilenet_v1_075" else None,
        std=HALF if name == "mobilenet_v1_075" else None,
    )
    shape = model.preprocessing.shape
    graph = export_float(fold_batch_norm(trace(model.module, shape)), shape)
    images: dict[str, tuple[Tensor, Tensor]] = {}
    for part, limit in (("calib", num_calib), ("tune", num_tune), ("val", None)):
        if name.startswith("cifar"):
            images[part] = _cifar(part, limit, seed)
            continue
        found = open_images(
            str(SHARED / f"images/imagenet_{part}.tar"),
            model.preprocessing,
            classes=read_classes(SHARED / "images/wnids.txt"),
            num_classes=1000,
            limit=limit,
            seed=seed,
        )
        images[part] = found.load(np.arange(len(found)))
    return RealNetwork(name, graph, images["calib"][0], images["tune"], images["val"])


def _cifar(part: str, limit: int | None, seed: int) -> tuple[Tensor, Tensor]:
    arrays = np.load(SHARED / "cifar10.npz")
    x, y = arrays[f"{PARTS[part]}_x"], arrays[f"{PARTS[part]}_y"]
    chosen = {"calib": slice(0, FIRST_TUNE), "tune": slice(FIRST_TUNE, None)}.get(part, slice(None))
    x, y = x[chosen], y[chosen]
    order = np.random.default_rng(seed).permutation(len(x))[:limit]
    mean = np.array((0.485, 0.456, 0.406), np.float32)
    std = np.array((0.229, 0.224, 0.225), np.float32)
    scaled = (x[order].astype(np.float32) / 255 - mean) / std
    images = torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))
    return images, torch.from_numpy(y[order].astype(np.int64))


@torch.inference_mode()
def _logits(network: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([network(batch) for batch in torch.split(images, 8)])
