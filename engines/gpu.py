"""Is there an NVIDIA GPU? Asked of the driver itself, so that no heavy library is imported."""

from __future__ import annotations

import ctypes
import functools
import sys

DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
CUDA_SUCCESS = 0
NAME_BYTES = 256
MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the driver's C header."""


@functools.cache
def gpu_name() -> str | None:
    """Returns the name of the first NVIDIA GPU, or None without a driver or without a GPU."""
    try:
        driver = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return None
    count = ctypes.c_int(0)
    if driver.cuInit(0) != CUDA_SUCCESS:
        return None
    if driver.cuDeviceGetCount(ctypes.byref(count)) != CUDA_SUCCESS or count.value < 1:
        return None
    device = ctypes.c_int(0)
    name = ctypes.create_string_buffer(NAME_BYTES)
    if driver.cuDeviceGet(ctypes.byref(device), 0) != CUDA_SUCCESS:
        return None
    if driver.cuDeviceGetName(name, NAME_BYTES, device) != CUDA_SUCCESS:
        return "NVIDIA GPU"
    return name.value.decode("utf-8", errors="replace")


@functools.cache
def gpu_compute_capability() -> int | None:
    """Returns for instance 89 for SM89, the first NVIDIA GPU's; None where `gpu_name` is None."""
    if gpu_name() is None:
        return None
    driver, device = ctypes.CDLL(DRIVER_LIBRARY), ctypes.c_int(0)
    parts = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int(0)
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != CUDA_SUCCESS:
            return None
        parts.append(value.value)
    return 10 * parts[0] + parts[1]


def gpu_present() -> bool:
    """Returns whether the CUDA driver loads and shows at least one device."""
    return gpu_name() is not None
