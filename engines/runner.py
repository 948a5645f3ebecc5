"""What runs a graph: the Runner protocol, and the check that a feed fits before it runs.

with OrtRunner(Path("model.qdq.onnx")) as runner:
    logits = runner.infer({"input": images})["logits"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from fdda_deploy.errors import EngineError

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
"""One array per input name, the batch along axis 0."""


class Runner(Protocol):
    """Runs one graph; holds its memory from ``__enter__`` to ``__exit__`` and not longer."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names that a feed must have, in graph order."""
        ...

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names that ``infer`` returns, in graph order."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Returns every output for one batch; the arrays are the caller's own."""
        ...

    def describe(self) -> str:
        """Returns what it runs on, in a few words for the report."""
        ...


class TimedRunner(Runner, Protocol):
    """A runner that says where its time is spent, which a latency is worthless without."""

    @property
    def runs_on(self) -> str:
        """``CPU`` or ``GPU``."""
        ...

    @property
    def num_threads(self) -> int | None:
        """Threads that compute on the CPU; None where the GPU does."""
        ...


@dataclass(frozen=True)
class RunParts:
    """Where the time of one run on a device went, in ms.

    Attributes:
        enqueue_ms: On the host, to hand the run over.
        h2d_ms: Copy of the inputs to the device; 0 without transfers.
        compute_ms: The network alone.
        d2h_ms: Copy of the outputs to the host; 0 without transfers.
    """

    enqueue_ms: float
    h2d_ms: float
    compute_ms: float
    d2h_ms: float


@runtime_checkable
class DeviceTimed(Protocol):
    """A runner that times each part of a run with CUDA events."""

    @property
    def last_parts(self) -> RunParts:
        """Where the time of the last ``infer`` or ``rerun`` went."""
        ...

    @property
    def cuda_graph(self) -> bool:
        """Whether a run is one launch of a captured graph."""
        ...

    @property
    def spin_wait(self) -> bool:
        """Whether the host polls for the end of a run."""
        ...

    def rerun(self) -> None:
        """Runs the last batch again where it lies on the device, without any copy."""
        ...


@dataclass(frozen=True)
class InputSpec:
    """What one graph input accepts.

    Attributes:
        name: Tensor name.
        dtype: Element type; None where NumPy has no name for it, and it is not checked.
        shape: One entry per axis; None for a dynamic axis.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | None, ...]


def check_feed(feed: Feed, specs: Sequence[InputSpec]) -> None:
    """Refuses a feed that does not fit the graph's inputs.

    Raises:
        EngineError: A missing or unknown name, another dtype or shape, or an empty batch.
    """
    wanted = [spec.name for spec in specs]
    if sorted(feed) != sorted(wanted):
        raise EngineError(f"feed has {_names(feed)}: the graph wants {_names(wanted)}.")
    for spec in specs:
        array = feed[spec.name]
        if spec.dtype is not None and array.dtype != spec.dtype:
            raise EngineError(
                f"input {spec.name}: got {array.dtype}, want {spec.dtype}. "
                f"Convert the batch with .astype('{spec.dtype}')."
            )
        if not _fits(array.shape, spec.shape):
            want = "x".join("N" if size is None else str(size) for size in spec.shape)
            raise EngineError(
                f"input {spec.name}: got shape {'x'.join(map(str, array.shape)) or 'scalar'}, "
                f"want {want}. Preprocess the images to the size that the graph was exported for."
            )


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    if len(shape) != len(wanted) or 0 in shape:
        return False
    return all(want is None or got == want for got, want in zip(shape, wanted, strict=True))


def _names(names: Mapping[str, Array] | Sequence[str]) -> str:
    return ", ".join(sorted(names)) or "no arrays"
