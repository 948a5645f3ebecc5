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
from typing import Any, NamedTuple

from fdda_deploy.engines.gpu import gpu_present
from fdda_deploy.engines.messages import one_line
from fdda_deploy.engines.trt_capabilities import Capabilities, Flavour, capabilities_of
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
