"""Calibration records: our own format and TensorRT's text table."""
