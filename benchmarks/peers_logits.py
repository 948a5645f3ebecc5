"""A graph's logits by the ONNX Runtime of whichever environment runs this: images in, logits out.

    modelopt-venv/bin/python benchmarks/peers_logits.py model.onnx test.npy logits.npy

For files that this project's ONNX Runtime does not load and the one they were made with does. No
optimizations, as for the others. Imports nothing of this project.
"""

from __future__ import annotations

import argparse

import numpy as np
import onnxruntime

BATCH = 25


def main() -> None:
    """Writes the first output of every image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("graph")
    parser.add_argument("images")
    parser.add_argument("out")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        arguments.graph, options, providers=["CPUExecutionProvider"]
    )
    images, name = np.load(arguments.images, mmap_mode="r"), session.get_inputs()[0].name
    found = [
        session.run(None, {name: np.ascontiguousarray(images[start : start + BATCH])})[0]
        for start in range(0, len(images), BATCH)
    ]
    np.save(arguments.out, np.concatenate(found))


if __name__ == "__main__":
    main()
