"""The graph that leaves: float ONNX, QDQ ONNX, and the TensorRT rule check."""
