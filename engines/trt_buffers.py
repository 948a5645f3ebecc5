"""The buffers of a loaded plan: per tensor one on the device and a pinned one on the host."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fdda_deploy.engines.device_memory import DeviceMemory
from fdda_deploy.engines.runner import Array, Feed, InputSpec
from fdda_deploy.engines.trt_api import TrtApi


@dataclass
class _Buffer:
    """Memory of one tensor; ``view`` is the part of ``host`` that the current shape fills."""

    address: int
    host: Array
    view: Array


class TensorBuffers:
    """Device and pinned host memory for the inputs and outputs of one engine; it only grows.

    Args:
        api: Of the engine, for its enumerations.
        engine: Deserialized.
        memory: Gives the memory, and takes it back when it is closed.

    Attributes:
        inputs: What each input accepts, in graph order.
        output_names: In graph order.
    """

    def __init__(self, api: TrtApi, engine: Any, memory: DeviceMemory) -> None:
        self._module, self._engine, self._memory = api.module, engine, memory
        self._buffers: dict[str, _Buffer] = {}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = api.module.TensorIOMode.INPUT
        inputs = [name for name in names if engine.get_tensor_mode(name) == is_input]
        self.inputs = tuple(self._spec(name) for name in inputs)
        self.output_names = tuple(name for name in names if name not in inputs)

    def bind(self, context: Any, shapes: dict[str, tuple[int, ...]]) -> None:
        """Makes room for inputs of ``shapes`` and what follows from them, and tells ``context``."""
        every = dict(shapes)
        for name in self.output_names:
            every[name] = tuple(context.get_tensor_shape(name))
        for name, shape in every.items():
            context.set_tensor_address(name, self._reserve(name, shape).address)

    def fill(self, feed: Feed) -> None:
        """Writes a feed of the bound shapes into the pinned input buffers."""
        for name, array in feed.items():
            np.copyto(self._buffers[name].view, array)

    def copy_in(self) -> None:
        """Queues the copies of all inputs to the device."""
        for spec in self.inputs:
            buffer = self._buffers[spec.name]
            self._memory.copy_to_device(buffer.address, buffer.view)

    def copy_out(self) -> None:
        """Queues the copies of all outputs to the host."""
        for name in self.output_names:
            buffer = self._buffers[name]
            self._memory.copy_to_host(buffer.view, buffer.address)

    def outputs(self) -> dict[str, Array]:
        """Returns copies of the outputs: the next run writes over the pinned ones."""
        return {name: self._buffers[name].view.copy() for name in self.output_names}

    def _reserve(self, name: str, shape: tuple[int, ...]) -> _Buffer:
        dtype = self._dtype(name)
        num_bytes = max(1, math.prod(shape) * dtype.itemsize)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.host.nbytes < num_bytes:
            if buffer is not None:
                del self._buffers[name]
                self._memory.free(buffer.address)
                self._memory.free_pinned(buffer.host)
            host = self._memory.pinned(num_bytes)
            buffer = _Buffer(self._memory.allocate(num_bytes), host, host)
            self._buffers[name] = buffer
        used = math.prod(shape) * dtype.itemsize
        buffer.view = buffer.host[:used].view(dtype).reshape(shape)
        return buffer

    def _spec(self, name: str) -> InputSpec:
        shape = tuple(self._engine.get_tensor_shape(name))
        return InputSpec(name, self._dtype(name), tuple(None if n < 0 else n for n in shape))

    def _dtype(self, name: str) -> np.dtype[Any]:
        found: np.dtype[Any] = np.dtype(self._module.nptype(self._engine.get_tensor_dtype(name)))
        return found
