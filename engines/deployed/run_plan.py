"""Runs a plan of this package on the first GPU; infer.py imports it when it needs one.

Needs TensorRT or TensorRT-RTX, whichever the plan is for, and cuda-bindings or pycuda.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOCAL_PLAN, LOCAL_RECORD = Path("local") / "engine.plan", Path("local") / "engine.json"
MODULES = {
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx_libs", "tensorrt_rtx_bindings"),
}
Array = NDArray[Any]


class PlanError(RuntimeError):
    """Why the plan does not run here, in one line."""


class PlanModel:
    """The plan in TensorRT or TensorRT-RTX, on the first GPU."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        path, flavour = plan_here(folder, manifest)
        try:
            trt = [importlib.import_module(name) for name in MODULES[flavour]][-1]
        except (ImportError, OSError) as error:
            raise PlanError(f"{flavour} cannot be imported: {error}") from None
        self._memory = _device_memory()
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise PlanError(f"{path.name}: {flavour} {trt.__version__} refused it, see above")
        self._context = self._engine.create_execution_context()
        self._input = manifest["inputs"][0]["name"]
        self._outputs = [tensor["name"] for tensor in manifest["outputs"]]
        self._nptype = trt.nptype
        self.title = f"{flavour} {trt.__version__}, {path.name}"

    def __call__(self, batch: NDArray[np.float32]) -> Array:
        """Returns the logits ``(N, classes)`` of a batch ``(N, C, H, W)``."""
        try:
            return self._run(batch)
        finally:
            self._memory.release()

    def _run(self, batch: NDArray[np.float32]) -> Array:
        if not self._context.set_input_shape(self._input, batch.shape):
            raise PlanError(f"the plan does not take {batch.shape}; see batch in manifest.json")
        self._context.set_tensor_address(self._input, self._memory.upload(batch))
        arrays = {name: self._empty(name) for name in self._outputs}
        places = {name: self._memory.allocate(array.nbytes) for name, array in arrays.items()}
        for name, place in places.items():
            self._context.set_tensor_address(name, place)
        if not self._context.execute_async_v3(self._memory.stream):
            raise PlanError("the plan failed while it ran, see above")
        for name, array in arrays.items():
            self._memory.download(array, places[name])
        return arrays[self._outputs[0]]

    def _empty(self, name: str) -> Array:
        dtype = self._nptype(self._engine.get_tensor_dtype(name))
        return np.empty(tuple(self._context.get_tensor_shape(name)), dtype)


def plan_here(folder: Path, manifest: Mapping[str, Any]) -> tuple[Path, str]:
    """Returns the plan and its flavour; one that was built on this machine comes first."""
    if (folder / LOCAL_PLAN).is_file() and (folder / LOCAL_RECORD).is_file():
        record = json.loads((folder / LOCAL_RECORD).read_text(encoding="utf-8"))
        return folder / LOCAL_PLAN, record["flavour"]
    if manifest["plan"] is None:
        raise PlanError("no plan here. Build one on this machine: python build_on_target.py")
    return folder / manifest["plan"]["file"], manifest["plan"]["flavour"]


def _device_memory() -> Any:
    try:
        return CudaBindingsMemory(importlib.import_module("cuda.bindings.runtime"))
    except ImportError:
        pass
    try:
        return PyCudaMemory(importlib.import_module("pycuda.driver"))
    except ImportError:
        raise PlanError("device memory needs a library: pip install cuda-bindings") from None


class CudaBindingsMemory:
    """Buffers of one call through cuda-bindings, NVIDIA's own."""

    def __init__(self, cuda: Any) -> None:
        self._cuda, self._held = cuda, list[int]()
        self.stream = int(self._call("cudaStreamCreate"))

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self._cuda, function)(*arguments)
        if int(status) != 0:
            raise PlanError(f"{function}: {status.name}. Is there a GPU? See nvidia-smi")
        return values[0] if values else None

    def allocate(self, num_bytes: int) -> int:
        """Returns a device address."""
        self._held.append(int(self._call("cudaMalloc", num_bytes)))
        return self._held[-1]

    def upload(self, array: Array) -> int:
        """Returns the device address of a copy."""
        place, kind = self.allocate(array.nbytes), self._cuda.cudaMemcpyKind
        self._call(
            "cudaMemcpy", place, array.ctypes.data, array.nbytes, kind.cudaMemcpyHostToDevice
        )
        return place

    def download(self, array: Array, place: int) -> None:
        """Waits for the stream, then copies into ``array``."""
        self._call("cudaStreamSynchronize", self.stream)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpy", array.ctypes.data, place, array.nbytes, kind)

    def release(self) -> None:
        """Frees every buffer."""
        while self._held:
            self._call("cudaFree", self._held.pop())


class PyCudaMemory:
    """The same through pycuda."""

    def __init__(self, cuda: Any) -> None:
        try:
            cuda.init()
            cuda.Device(0).retain_primary_context().push()
        except cuda.Error as error:
            raise PlanError(f"CUDA does not start: {error}. See nvidia-smi") from None
        self._cuda, self._held, self._stream = cuda, list[Any](), cuda.Stream()
        self.stream = int(self._stream.handle)

    def allocate(self, num_bytes: int) -> int:
        """Returns a device address."""
        self._held.append(self._cuda.mem_alloc(num_bytes))
        return int(self._held[-1])

    def upload(self, array: Array) -> int:
        """Returns the device address of a copy."""
        place = self.allocate(array.nbytes)
        self._cuda.memcpy_htod(place, array)
        return place

    def download(self, array: Array, place: int) -> None:
        """Waits for the stream, then copies into ``array``."""
        self._stream.synchronize()
        self._cuda.memcpy_dtoh(array, place)

    def release(self) -> None:
        """Frees every buffer."""
        while self._held:
            self._held.pop().free()
