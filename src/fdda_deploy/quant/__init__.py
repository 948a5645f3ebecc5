"""The arithmetic of quantization, written once in NumPy."""
