"""One graph by NVIDIA ModelOpt's ONNX quantization; runs in a virtual environment of its own.

    modelopt-venv/bin/python benchmarks/peers_modelopt.py float.onnx calib.npy out.onnx \
        --method entropy --floats fp16

Calibrates on the CPU; else the package's defaults. Imports nothing of this project, which is not
installed there.
"""

from __future__ import annotations

import argparse
import importlib


def main() -> None:
    """Quantizes one graph."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("graph")
    parser.add_argument("images")
    parser.add_argument("out")
    parser.add_argument("--method", choices=["entropy", "max"], default="entropy")
    parser.add_argument("--floats", choices=["fp16", "fp32"], default="fp16")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    import numpy as np
    import onnxruntime

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]  # ships no types
        """The package's own, with the threads of every tool here; ModelOpt has no setting."""

        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = arguments.threads

    onnxruntime.SessionOptions = Options
    quantization = importlib.import_module("modelopt.onnx.quantization")
    quantization.quantize(
        arguments.graph,
        quantize_mode="int8",
        calibration_data=np.load(arguments.images, mmap_mode="r"),
        calibration_method=arguments.method,
        calibration_eps=["cpu"],
        high_precision_dtype=arguments.floats,
        output_path=arguments.out,
    )


if __name__ == "__main__":
    main()
