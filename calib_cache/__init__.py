"""Calibration records, and the tables of TensorRT, ONNX Runtime and other tools."""
