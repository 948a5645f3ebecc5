"""The graph that runs: TensorRT, TensorRT-RTX and ONNX Runtime; build, run, bench, compare."""
