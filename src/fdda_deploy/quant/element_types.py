"""Element types that TensorRT has for what goes into a network and comes out of it."""

from __future__ import annotations

TENSORRT_TYPES = (
    "FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT64", "INT32", "INT8", "UINT8", "BOOL",
    "FLOAT8E4M3FN", "INT4", "FLOAT4E2M1",
)  # fmt: skip
"""By ONNX's names, as TensorRT-RTX 1.7.1's parser takes them; it refuses all others."""
