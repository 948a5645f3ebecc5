"""Classifies images with the network of this package: numpy, Pillow and one runtime, no torch.

    python infer.py image.png
    python infer.py *.jpg --backend onnx --json

``--backend plan`` needs an NVIDIA GPU, TensorRT or TensorRT-RTX, and cuda-bindings or pycuda.
``--backend onnx`` needs ONNX Runtime. ``auto`` takes the plan where it loads, else the graph.
Everything about the network is read from manifest.json beside this file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
MAX_IMAGE_PIXELS = 64_000_000
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Array = NDArray[Any]


class InferError(Exception):
    """What the user can act on, in one line."""


def pixels_of(image: Image.Image, preprocessing: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Returns an opened image as pixels ``(H, W, C)`` uint8: upright, resized, centre-cropped."""
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise InferError(f"{image.width}x{image.height} pixels, more than {MAX_IMAGE_PIXELS:,}")
    channels, height, width = (preprocessing[key] for key in ("channels", "height", "width"))
    image = _converted(ImageOps.exif_transpose(image), "RGB" if channels == 3 else "L")
    if image.size != (width, height):
        resampling = FILTERS[preprocessing["interpolation"]]
        shorter = preprocessing["resize"]
        if shorter is None:
            image = image.resize((width, height), resampling)
        else:
            image = _centre(image, shorter, (width, height), resampling)
    return np.asarray(image, dtype=np.uint8).reshape(height, width, channels)


def normalized(pixels: NDArray[np.uint8], preprocessing: Mapping[str, Any]) -> NDArray[np.float32]:
    """Returns pixels ``(N, H, W, C)`` uint8 as network input ``(N, C, H, W)`` float32."""
    mean, std = (
        np.asarray(preprocessing[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std")
    )
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32)
    planes /= np.float32(255)
    planes -= mean
    planes /= std
    return planes


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in {"I", "I;16", "I;16B", "I;16L"}:  # 16-bit greys keep their upper 8 bits
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in {"P", "PA"}:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _centre(
    image: Image.Image, shorter: int, size: tuple[int, int], resampling: Image.Resampling
) -> Image.Image:
    width, height = (shorter * side // min(image.size) for side in image.size)
    if width * height > MAX_IMAGE_PIXELS:
        raise InferError(f"{image.width}x{image.height} pixels: too narrow to resize")
    left, top = round((width - size[0]) / 2), round((height - size[1]) / 2)
    return image.resize((width, height), resampling).crop(
        (left, top, left + size[0], top + size[1])
    )


class OnnxModel:
    """The graph in ONNX Runtime, unchanged by optimizations, as its accuracy was measured."""

    def __init__(self, manifest: Mapping[str, Any], threads: int) -> None:
        if manifest["graph"] is None:
            raise InferError("this package has no ONNX graph: --backend plan alone can run it")
        try:
            ort = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise InferError(f"{error}. Install it: pip install onnxruntime") from None
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads
        path = HERE / manifest["graph"]["file"]
        try:
            self._session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no root of their own
            raise InferError(f"{path.name}: ONNX Runtime cannot load it: {error}") from error
        self._input = manifest["inputs"][0]["name"]
        self._output = manifest["outputs"][0]["name"]
        self.title = f"ONNX Runtime {ort.__version__} on the CPU"

    def __call__(self, batch: NDArray[np.float32]) -> Array:
        """Returns the logits ``(N, classes)`` of a batch ``(N, C, H, W)``."""
        logits: Array = self._session.run([self._output], {self._input: batch})[0]
        return logits


def open_model(manifest: Mapping[str, Any], backend: str, threads: int) -> Any:
    """Returns what runs the network; ``auto`` says on stderr why it left the plan."""
    if backend == "onnx":
        return OnnxModel(manifest, threads)
    run_plan = importlib.import_module("run_plan")  # beside this file
    try:
        return run_plan.PlanModel(HERE, manifest)
    except run_plan.PlanError as error:
        if backend == "plan" or manifest["graph"] is None:
            raise InferError(str(error)) from None
        sys.stderr.write(f"note: not the plan: {error}. Running the ONNX graph.\n")
        return OnnxModel(manifest, threads)


def best(logits: Array, labels: Sequence[str] | None, top: int) -> list[dict[str, Any]]:
    """Returns class, label and probability in percent of the ``top`` largest logits."""
    values = logits.astype(np.float64)
    shares = np.exp(values - values.max())
    shares *= 100 / shares.sum()
    order = np.argsort(-shares, kind="stable")[:top]
    return [
        {
            "class": int(index),
            "label": labels[index] if labels and index < len(labels) else None,
            "percent": float(shares[index]),
        }
        for index in order
    ]


def _pixels_in(path: str, preprocessing: Mapping[str, Any]) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return pixels_of(image, preprocessing)
    except (OSError, SyntaxError, ValueError, InferError) as error:  # Pillow's own ways to refuse
        raise InferError(f"{path}: not a readable image ({error})") from None


def _write(path: str, found: Sequence[Mapping[str, Any]]) -> None:
    sys.stdout.write(f"{path}\n")
    for row in found:
        label = "" if row["label"] is None else f"  {' '.join(str(row['label']).split())}"
        sys.stdout.write(f"  {row['percent']:6.2f} %  class {row['class']}{label}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Classifies the images named; returns the exit code."""
    parser = argparse.ArgumentParser(description="Classify images with this package's network.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--backend", choices=("auto", "onnx", "plan"), default="auto")
    parser.add_argument("--top", type=int, default=5, help="classes to print for each image")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    options = parser.parse_args(arguments)
    try:
        manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
        images = [_pixels_in(path, manifest["preprocessing"]) for path in options.images]
        model = open_model(manifest, options.backend, options.threads)
        least, answers = manifest["batch"]["min"], []
        for path, pixels in zip(options.images, images, strict=True):
            batch = normalized(np.stack([pixels] * least), manifest["preprocessing"])
            found = best(model(batch)[0], manifest["labels"], options.top)
            answers.append({"image": path, "runs_on": model.title, "top": found})
    except (InferError, OSError, RuntimeError) as error:  # run_plan's are RuntimeErrors
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    if options.json:
        sys.stdout.write(json.dumps(answers, indent=1) + "\n")
    else:
        for answer in answers:
            _write(str(answer["image"]), answer["top"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
