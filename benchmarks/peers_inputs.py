"""What all tools of benchmarks/peers.py are given: one float graph, the same images, its answers.

Ours reads the network and the images from their files, as a user hands them over. The others get
what they take: the folded float graph that ours starts from, and the same images preprocessed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fdda_deploy.durable import write_whole
from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.exporters.float_onnx import export_float
from fdda_deploy.pipeline.data import ImageSet, open_images, read_classes
from fdda_deploy.pipeline.models import load_float_model
from fdda_deploy.pipeline.network import trace
from fdda_deploy.pipeline.preprocessing import Preprocessing
from fdda_deploy.pipeline.quantization.fold import fold_batch_norm

SHARED = Path(__file__).parents[2] / "shared" / "data"
SEED = 0
BATCH = 25
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Network:
    """A trained network and its images, by the files beside the checkout.

    Attributes:
        model: As the command line takes it.
        weights: File name.
        calib: Images to calibrate on.
        test: Images that nothing chooses by.
        classes: File of class ids; None where the labels are in the images' file.
        input_size: Pixels; None where the network's own name says it.
        mean_std: Mean and deviation of each channel; None for the usual ones.
    """

    model: str
    weights: str
    calib: str
    test: str
    classes: str | None = None
    input_size: int | None = None
    mean_std: tuple[float, float, float] | None = None

    def options(self) -> list[str]:
        """Returns the arguments of a command that say what the network and its images are."""
        found = [self.model, "--weights", self.weights, "--calib-data", self.calib]
        if self.classes is not None:
            found += ["--classes", self.classes]
        if self.input_size is not None:
            found += ["--input-size", str(self.input_size)]
        if self.mean_std is not None:
            text = ",".join(map(str, self.mean_std))
            found += ["--mean", text, "--std", text]
        return found


def _imagenet(name: str, model: str, mean_std: tuple[float, float, float] | None = None) -> Network:
    return Network(
        model,
        str(SHARED / f"weights/{name}.pth"),
        str(SHARED / "images/imagenet_calib.tar"),
        str(SHARED / "images/imagenet_val.tar"),
        str(SHARED / "images/wnids.txt"),
        mean_std=mean_std,
    )


NETWORKS = {
    "cifar_resnet20": Network(
        f"{SHARED / 'networks.py'}:cifar_resnet20",
        str(SHARED / "weights/cifar_resnet20.pth"),
        f"{SHARED / 'cifar10.npz'}#train",
        f"{SHARED / 'cifar10.npz'}#test",
        input_size=32,
    ),
    "mobilenet_v2": _imagenet("mobilenet_v2", "mobilenet_v2"),
    "mobilenet_v1_075": _imagenet(
        "mobilenet_v1_075", f"{SHARED / 'networks.py'}:mobilenet_v1_075", HALF
    ),
}


@dataclass(frozen=True)
class Inputs:
    """Files of one network, in a folder of their own.

    Attributes:
        folder: Where they are.
        calib_digest: Says which images calibrate; our own graphs carry the same.
        num_calib: How many.
    """

    folder: Path
    calib_digest: str
    num_calib: int

    @property
    def float_graph(self) -> Path:
        """The folded float graph."""
        return self.folder / "float.onnx"

    @property
    def calib(self) -> Path:
        """Calibration images ``(n, C, H, W)`` float32, preprocessed, as .npy."""
        return self.folder / "calib.npy"

    def test(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns test images ``(n, C, H, W)`` float32, mapped from the disk, and labels."""
        images = np.load(self.folder / "test.npy", mmap_mode="r")
        return images, np.load(self.folder / "labels.npy")

    def float_logits(self) -> NDArray[np.float32]:
        """Returns the float graph's logits ``(n, classes)`` of the test images."""
        found: NDArray[np.float32] = np.load(self.folder / "float_logits.npy")
        return found


def prepared(name: str, folder: Path, *, images: int, test_images: int) -> Inputs:
    """Returns the inputs of a network; what an earlier run left in ``folder`` is taken as it is.

    Args:
        name: A key of `NETWORKS`.
        folder: Of this network and these numbers of images alone; made if it is not there.
        images: Calibration images.
        test_images: Test images at most.
    """
    done = folder / "inputs.json"
    if not done.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        digest, count = _prepare(NETWORKS[name], folder, images, test_images)
        write_whole(done, json.dumps({"digest": digest, "num_calib": count}).encode())
    found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    return Inputs(folder, found["digest"], found["num_calib"])


def _prepare(network: Network, folder: Path, images: int, test_images: int) -> tuple[str, int]:
    model = load_float_model(
        network.model,
        weights=network.weights,
        input_size=None if network.input_size is None else (network.input_size,) * 2,
        mean=network.mean_std,
        std=network.mean_std,
    )
    shape = model.preprocessing.shape
    graph = export_float(fold_batch_norm(trace(model.module, shape)), shape)
    onnx.save(graph.proto, folder / "float.onnx")
    calib = _images(network, network.calib, model.preprocessing, images)
    np.save(folder / "calib.npy", calib.load(np.arange(len(calib)))[0].numpy())
    test = _images(network, network.test, model.preprocessing, test_images)
    pixels, labels = test.load(np.arange(len(test)))
    np.save(folder / "test.npy", pixels.numpy())
    np.save(folder / "labels.npy", labels.numpy())
    np.save(folder / "float_logits.npy", logits_of(folder / "float.onnx", pixels.numpy()))
    return calib.digest, len(calib)


def _images(network: Network, source: str, preprocessing: Preprocessing, limit: int) -> ImageSet:
    classes = None if network.classes is None else read_classes(Path(network.classes))
    return open_images(
        source,
        preprocessing,
        classes=classes,
        num_classes=10 if classes is None else len(classes),
        limit=limit,
        seed=SEED,
    )


def logits_of(graph: Path, images: NDArray[np.float32], threads: int = 1) -> NDArray[np.float32]:
    """Returns a graph's logits ``(n, classes)`` in ONNX Runtime, exactly as it is written."""
    with OrtRunner(graph, num_threads=threads) as runner:
        spec = runner.inputs[0]
        size = spec.shape[0] or BATCH
        batches = [np.ascontiguousarray(images[i : i + size]) for i in range(0, len(images), size)]
        output = runner.output_names[0]
        return np.concatenate([runner.infer({spec.name: batch})[output] for batch in batches])
