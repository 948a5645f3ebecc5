"""One graph by ONNX Runtime's static quantization: a process of its own, so its memory is its own.

    python benchmarks/peers_ort.py float.onnx calib.npy out.onnx --method minmax --activations int8

Q/DQ, weights per channel, and else the package's defaults, behind the preparation that its
documentation asks for.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import quantization as ort
from onnxruntime.quantization.shape_inference import quant_pre_process

METHODS = {"minmax": ort.CalibrationMethod.MinMax, "entropy": ort.CalibrationMethod.Entropy}
ACTIVATIONS = {"int8": ort.QuantType.QInt8, "uint8": ort.QuantType.QUInt8}


class Reader(ort.CalibrationDataReader):  # type: ignore[misc]  # ships no types
    """Hands over one image at a time, read from the disk when it is asked for."""

    def __init__(self, name: str, images: NDArray[np.float32]) -> None:
        self._feeds: Iterator[dict[str, Any]] = (
            {name: np.ascontiguousarray(images[i : i + 1])} for i in range(len(images))
        )

    def get_next(self) -> dict[str, Any] | None:
        """Returns the next feed, None at the end."""
        return next(self._feeds, None)


def with_threads(threads: int) -> type:
    """Returns the package's session options with this many threads, which its quantizer asks for.

    It offers no setting for them, and two threads on one CPU would wait for one another.
    """

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]  # ships no types
        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = threads

    return Options


def main(words: Sequence[str] | None = None) -> None:
    """Quantizes one graph, as the command line says or as ``words`` say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("graph")
    parser.add_argument("images")
    parser.add_argument("out")
    parser.add_argument("--method", choices=list(METHODS), default="minmax")
    parser.add_argument("--activations", choices=list(ACTIVATIONS), default="int8")
    parser.add_argument("--input", default="input")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(words)
    onnxruntime.SessionOptions = with_threads(arguments.threads)
    images = np.load(arguments.images, mmap_mode="r")
    with tempfile.TemporaryDirectory() as folder:
        ready = str(Path(folder) / "ready.onnx")
        quant_pre_process(arguments.graph, ready)
        ort.quantize_static(
            ready,
            arguments.out,
            Reader(arguments.input, images),
            quant_format=ort.QuantFormat.QDQ,
            per_channel=True,
            activation_type=ACTIVATIONS[arguments.activations],
            calibrate_method=METHODS[arguments.method],
        )


if __name__ == "__main__":
    main()
