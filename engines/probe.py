"""The probe: a few images and what the network answered, so that any machine can test itself."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fdda_deploy.engines.deployed.infer import normalized
from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.engines.runner import Array, Runner
from fdda_deploy.errors import EngineError

PROBE = "probe.npz"
IMAGES = 4
TOLERANCE = 0.05
"""Largest relative L2 of the logits: another CPU sums in another order, which moves a value over
the edge between two steps of a grid now and then. A wrong file differs by far more."""
MAX_PROBE_BYTES = 256 * 1024 * 1024
"""Unpacked; a probe of four 1024-pixel images takes 50 MB."""
ARRAYS = ("input", "logits")


@dataclass(frozen=True)
class Probe:
    """What a package can be asked, and its answer.

    Attributes:
        images: Network input ``(N, C, H, W)``.
        logits: First output ``(N, classes)``.
    """

    images: Array
    logits: Array


@dataclass(frozen=True)
class ProbeResult:
    """How an answer of today compares with the stored one.

    Attributes:
        relative_l2: ``||now - then|| / ||then||``.
        same_top1: Share of images with the same best class, 0 to 1.
        runs_on: What answered.
    """

    relative_l2: float
    same_top1: float
    runs_on: str

    @property
    def passed(self) -> bool:
        """Whether the difference is one that rounding can explain."""
        return self.relative_l2 <= TOLERANCE


def probe_images(preprocessing: Mapping[str, Any], count: int) -> Array:
    """Returns seeded images ``(count, C, H, W)`` float32: coarse patches of colour, no noise.

    Args:
        preprocessing: As in a manifest.
        count: How many.
    """
    height, width, channels = (preprocessing[key] for key in ("height", "width", "channels"))
    shape = (count, -(-height // 4), -(-width // 4), channels)
    coarse = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels = coarse.repeat(4, axis=1).repeat(4, axis=2)[:, :height, :width]
    return normalized(np.ascontiguousarray(pixels), preprocessing)


def take_probe(runner: Runner, images: Array, output: str) -> Probe:
    """Returns what ``runner`` answers to ``images``.

    Raises:
        EngineError: The run failed, or an answer is not finite.
    """
    logits = _answer(runner, images, output)
    if not np.isfinite(logits).all():
        raise EngineError(
            "the network answers NaN or infinity to an ordinary image. Look for the layer with "
            "`fdda-deploy build --effort none`, and build again."
        )
    return Probe(images, logits)


def compare_probe(runner: Runner, probe: Probe, output: str) -> ProbeResult:
    """Returns how ``runner`` answers today.

    Raises:
        EngineError: The run failed, or answers another shape.
    """
    got = _answer(runner, probe.images, output)
    if got.shape != probe.logits.shape:
        raise EngineError(f"the network answers {got.shape}, the probe holds {probe.logits.shape}.")
    wanted, now = (array.astype(np.float64) for array in (probe.logits, got))
    norm = float(np.linalg.norm(wanted))
    difference = float(np.linalg.norm(now - wanted)) / max(norm, 1e-12)
    same = (now.argmax(axis=-1) == wanted.argmax(axis=-1)).mean()
    relative = difference if np.isfinite(difference) else float("inf")
    return ProbeResult(relative, float(same), runner.describe())


def _answer(runner: Runner, images: Array, output: str) -> Array:
    if len(runner.input_names) != 1 or output not in runner.output_names:
        raise EngineError(
            f"the network takes {len(runner.input_names)} inputs and gives "
            f"{', '.join(runner.output_names)[:100]}, the manifest wants one input and "
            f"{output[:100]!r}. Get the package again."
        )
    return runner.infer({runner.input_names[0]: images})[output]


def probe_bytes(probe: Probe) -> bytes:
    """Returns the probe as an .npz file."""
    stream = io.BytesIO()
    np.savez(stream, input=probe.images, logits=probe.logits)
    return stream.getvalue()


def probe_from_bytes(data: bytes) -> Probe:
    """Returns the probe in an .npz file that may come from anywhere; it cannot run code.

    Raises:
        EngineError: It is no such file, or unpacks to more than `MAX_PROBE_BYTES`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MAX_PROBE_BYTES:
            raise EngineError(f"{PROBE}: unpacks to {unpacked:,} bytes. Get the package again.")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            images, logits = (arrays[name] for name in ARRAYS)
    # whatever numpy and zipfile make of damaged bytes; a declared shape may ask for all memory
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(error) from None
    except (NotImplementedError, RuntimeError, MemoryError, SyntaxError, TypeError) as error:
        raise _damaged(error) from None
    for name, array in zip(ARRAYS, (images, logits), strict=True):
        if array.dtype.kind != "f" or array.ndim < 2 or len(array) != len(images) or not array.size:
            raise EngineError(
                f"{PROBE}: {name} is {array.dtype} {array.shape}. Get the package again."
            )
    if not (np.isfinite(images).all() and np.isfinite(logits).all()):
        raise EngineError(f"{PROBE}: holds NaN or infinity. Get the package again.")
    return Probe(images, logits)


def open_graph(data: bytes) -> OrtRunner:
    """Returns a runner of an ONNX graph that may come from anywhere: it reads no other file.

    Raises:
        EngineError: Not ONNX, or its weights lie in other files.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # none shipped

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise EngineError(f"the graph is no ONNX file ({error}). Get the package again.") from None
    outside = next((t.name for t in _tensors_of(model) if _is_external(t)), None)
    if outside is not None:
        raise EngineError(
            f"the graph keeps {str(outside)[:60]!r} in another file, which is not read from a "
            "package. Do not use this package."
        )
    return OrtRunner(data, optimizations="none")


def _is_external(tensor: Any) -> bool:
    return bool(tensor.data_location == 1 or tensor.external_data)  # TensorProto.EXTERNAL


def _tensors_of(message: Any) -> Iterator[Any]:
    """Yields every TensorProto of an ONNX message, wherever it is nested."""
    stack = [message]
    while stack:
        part = stack.pop()
        if part.DESCRIPTOR.full_name == "onnx.TensorProto":
            yield part
            continue
        for field, value in part.ListFields():
            if field.message_type is not None:
                stack.extend([value] if hasattr(value, "ListFields") else value)


def _damaged(error: Exception) -> EngineError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return EngineError(f"{PROBE}: cannot be read ({reason}). Get the package again.")
