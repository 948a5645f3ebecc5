"""One face over TensorRT 10, TensorRT 11 and TensorRT-RTX: what each has, and how to load it.

Everything that differs between them is read off the loaded module once, into ``Capabilities``;
no other file asks for a version. Flags are kept by name, because 10 and 11 number them differently.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from fdda_deploy.engines.gpu import gpu_present
from fdda_deploy.engines.messages import one_line
from fdda_deploy.errors import MissingBackendError

__all__ = [
    "FLAVOURS",
    "INSTALL",
    "TITLES",
    "Capabilities",
    "Flavour",
    "LogRecord",
    "TrtApi",
    "available_apis",
    "capabilities_of",
    "collect_log",
    "errors_in",
    "gpu_present",
    "load_api",
    "without_driver_noise",
]

Flavour = Literal["tensorrt", "tensorrt_rtx"]
FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt_rtx")
TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
IMPORTS = {
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx_libs", "tensorrt_rtx_bindings"),  # the libraries load first
}
INSTALL = {
    "tensorrt": "pip install 'tensorrt>=10.13,<12' cuda-bindings",
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
}
OLDEST_TENSORRT = (10, 13)


@dataclass(frozen=True)
class Capabilities:
    """What one TensorRT can do, read off its module.

    Attributes:
        builds_without_gpu: The builder works on a machine without a driver.
        has_calibrator: INT8 calibrator classes exist; without them Q/DQ is the only way.
        has_strongly_typed_flag: A network must be asked to keep the types that ONNX states.
        has_explicit_batch_flag: The flag exists; it has meant nothing since 10.0.
        compute_capabilities: GPU generations a plan can be aimed at, 86 for SM86; empty where
            the builder aims at the GPU it runs on.
        flags: Names of the builder flags.
    """

    builds_without_gpu: bool
    has_calibrator: bool
    has_strongly_typed_flag: bool
    has_explicit_batch_flag: bool
    compute_capabilities: frozenset[int]
    flags: frozenset[str]


@dataclass(frozen=True)
class TrtApi:
    """One loaded TensorRT.

    Attributes:
        module: The Python bindings.
        flavour: ``tensorrt`` or ``tensorrt_rtx``.
        version: As the library states it, for instance ``1.7.1.116``.
        capabilities: What it can do.
    """

    module: Any = field(repr=False)
    flavour: Flavour
    version: str
    capabilities: Capabilities

    @property
    def title(self) -> str:
        """For instance ``TensorRT-RTX 1.7.1.116``."""
        return f"{TITLES[self.flavour]} {self.version}"

    @property
    def network_flags(self) -> int:
        """Flags for ``create_network``: strongly typed, where that has to be asked for."""
        if not self.capabilities.has_strongly_typed_flag:
            return 0
        return 1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


@functools.cache
def load_api(flavour: Flavour) -> TrtApi:
    """Returns the installed TensorRT of one flavour, loaded.

    Raises:
        MissingBackendError: It is not installed, does not load, or is too old; the message ends
            with the install line.
    """
    title, install = TITLES[flavour], INSTALL[flavour]
    try:
        module = [importlib.import_module(name) for name in IMPORTS[flavour]][-1]
        version = str(module.__version__)
    except (ImportError, OSError, AttributeError) as error:  # OSError: a library is missing
        reason = one_line(f"{type(error).__name__}: {error}")
        raise MissingBackendError(
            f"{title} cannot be imported ({reason}). Install it: {install}"
        ) from error
    release = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if flavour == "tensorrt" and release < OLDEST_TENSORRT:
        raise MissingBackendError(f"{title} {version} is too old: want 10.13 or later: {install}")
    return TrtApi(module, flavour, version, capabilities_of(module, flavour))


def available_apis() -> tuple[TrtApi, ...]:
    """Returns every TensorRT that loads here, full TensorRT first; empty where there is none."""
    found = []
    for flavour in FLAVOURS:
        try:
            found.append(load_api(flavour))
        except MissingBackendError:
            continue  # absence is the answer here; `doctor` prints the reason
    return tuple(found)


def capabilities_of(module: Any, flavour: Flavour) -> Capabilities:
    """Returns what the bindings ``module`` can do, by what it has and not by its version."""
    network_flags = _members(module, "NetworkDefinitionCreationFlag")
    is_rtx = flavour == "tensorrt_rtx"
    names = _members(module, "ComputeCapability") if is_rtx else ()
    return Capabilities(
        builds_without_gpu=is_rtx,
        has_calibrator=hasattr(module, "IInt8EntropyCalibrator2"),
        has_strongly_typed_flag="STRONGLY_TYPED" in network_flags,
        has_explicit_batch_flag="EXPLICIT_BATCH" in network_flags,
        compute_capabilities=frozenset(int(n[2:]) for n in names if re.fullmatch(r"SM\d+", n)),
        flags=frozenset(_members(module, "BuilderFlag")),
    )


def _members(module: Any, enum_name: str) -> tuple[str, ...]:
    return tuple(getattr(getattr(module, enum_name, None), "__members__", ()))


class LogRecord(NamedTuple):
    """One message of TensorRT.

    Attributes:
        severity: ``INTERNAL_ERROR``, ``ERROR``, ``WARNING`` or ``INFO``.
        text: As TensorRT wrote it.
    """

    severity: str
    text: str


@contextmanager
def collect_log(api: TrtApi) -> Iterator[tuple[Any, list[LogRecord]]]:
    """Yields TensorRT's logger and the list that fills while the block runs.

    TensorRT keeps a raw pointer to the first logger it meets, for all builders and runtimes to
    come. So there is one logger per flavour, which lives as long as the process, and only its
    list changes.
    """
    logger = _logger(api.flavour)
    records: list[LogRecord] = []
    logger.sinks.append(records)
    try:
        yield logger, records
    finally:
        logger.sinks[:] = [sink for sink in logger.sinks if sink is not records]


@functools.cache
def _logger(flavour: Flavour) -> Any:
    base: Any = load_api(flavour).module.ILogger

    class CollectingLogger(base):  # type: ignore[misc]  # the bindings carry no types
        def __init__(self) -> None:
            base.__init__(self)  # pybind11 refuses an object whose own base was not initialised
            self.sinks: list[list[LogRecord]] = []

        def log(self, severity: Any, text: str) -> None:
            if severity.name == "VERBOSE":  # tens of thousands of lines for a ResNet-50
                return
            for sink in self.sinks:
                sink.append(LogRecord(severity.name, text))

    return CollectingLogger()


def errors_in(records: list[LogRecord]) -> str:
    """Returns the errors of a log in one line, without complaints about a missing driver."""
    texts = [record.text for record in records if record.severity.endswith("ERROR")]
    return one_line(without_driver_noise("\n".join(texts)))


def without_driver_noise(text: str) -> str:
    """Returns ``text`` without the lines in which TensorRT-RTX notes that there is no GPU.

    On a machine without a driver they follow every error, and hide it.
    """
    lines = text.splitlines()
    return "\n".join(line for line in lines if "cudaError 35" not in line)
