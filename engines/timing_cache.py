"""Kernel timings kept from build to build, in a file per GPU, driver and TensorRT release.

Timings of another GPU or driver choose the wrong kernels, so all four are in the file's name (as a
digest) and in the note beside it. What does not match, or is damaged, is measured again and said.
The layout of the timings themselves is TensorRT's own affair.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fdda_deploy.durable import write_whole
from fdda_deploy.engines.gpu import gpu_compute_capability, gpu_name
from fdda_deploy.engines.trt_api import TrtApi
from fdda_deploy.errors import EngineError

SCHEMA = 1
MAX_TIMING_BYTES = 256 * 2**20
MAX_NOTE_BYTES = 64 * 2**10
NVML_LIBRARY = "libnvidia-ml.so.1"
_TEXT_BYTES = 96


@dataclass(frozen=True)
class TimingKey:
    """What timings depend on.

    Attributes:
        gpu: Name of the GPU; empty without one.
        compute_capability: 89 for SM89; 0 without a GPU.
        driver: Release of NVIDIA's driver; empty where it cannot be asked.
        tensorrt: Flavour and version of the library.
    """

    gpu: str
    compute_capability: int
    driver: str
    tensorrt: str

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of a SHA-256 over all of it: the file's name."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class LoadedTimings:
    """What a folder had for one key.

    Attributes:
        timings: Bytes that TensorRT wrote; empty to start afresh.
        note: Why they are empty, where there was something; None otherwise.
    """

    timings: bytes
    note: str | None


def timing_key(api: TrtApi) -> TimingKey:
    """Returns the key of the machine and the TensorRT at hand."""
    return TimingKey(
        gpu_name() or "", gpu_compute_capability() or 0, driver_release() or "", api.title
    )


def driver_release() -> str | None:
    """Returns the release of NVIDIA's driver, for instance ``580.65.06``, or None without one."""
    try:
        library = ctypes.CDLL(NVML_LIBRARY)
    except OSError:
        return None
    text = ctypes.create_string_buffer(_TEXT_BYTES)
    if library.nvmlInit_v2() != 0:
        return None
    status = library.nvmlSystemGetDriverVersion(text, _TEXT_BYTES)
    library.nvmlShutdown()
    return text.value.decode("ascii", errors="replace") if status == 0 else None


def load_timings(folder: Path, key: TimingKey) -> LoadedTimings:
    """Returns what ``folder`` holds for ``key``; damage is a note there, never an error."""
    path, beside = _paths(folder, key)
    if not path.exists() and not beside.exists():
        return LoadedTimings(b"", None)
    try:
        timings, note = _read(path, MAX_TIMING_BYTES), json.loads(_read(beside, MAX_NOTE_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        return LoadedTimings(b"", _rebuilt(path, type(error).__name__))
    wanted = _note_of(key, timings)
    if not isinstance(note, dict):
        return LoadedTimings(b"", _rebuilt(path, "its note is no JSON object"))
    wrong = [name for name, value in wanted.items() if note.get(name) != value]
    if wrong:
        return LoadedTimings(b"", _rebuilt(path, f"{wrong[0]} differs from its note"))
    return LoadedTimings(timings, None)


def save_timings(folder: Path, key: TimingKey, timings: bytes) -> Path:
    """Writes ``timings`` and the note beside them, each whole or not at all; returns the file.

    Raises:
        EngineError: The folder cannot be made or written.
    """
    path, beside = _paths(folder, key)
    note = json.dumps(_note_of(key, timings), indent=1, sort_keys=True) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, timings)
        write_whole(beside, note.encode())  # last: a note without its timings would not match
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{folder}: kernel timings cannot be kept ({error}). "
            "Give --timing-cache a folder that can be written, or leave it out."
        ) from error
    return path


class TimingCache:
    """The timings of one build: given to the builder before it, taken and kept after it.

    Args:
        folder: Where they are kept.
        api: A TensorRT whose capabilities say that it has a timing cache.
    """

    def __init__(self, folder: Path, api: TrtApi) -> None:
        self._folder = folder
        self._key = timing_key(api)
        self.notes: list[str] = []

    def attach(self, config: Any) -> None:
        """Gives the builder ``config`` what is there, or an empty cache to fill."""
        found = load_timings(self._folder, self._key)
        if found.note is not None:
            self.notes.append(found.note)
        if found.timings:
            cache = config.create_timing_cache(found.timings)
            if cache is not None and config.set_timing_cache(cache, False):
                return
            self.notes.append(
                f"{_paths(self._folder, self._key)[0]}: TensorRT takes these kernel timings for "
                "another machine's; they are measured again."
            )
        config.set_timing_cache(config.create_timing_cache(b""), False)

    def keep(self, config: Any) -> None:
        """Writes what the builder measured.

        Raises:
            EngineError: The folder cannot be written.
        """
        cache = config.get_timing_cache()
        if cache is not None:
            save_timings(self._folder, self._key, bytes(cache.serialize()))


def _paths(folder: Path, key: TimingKey) -> tuple[Path, Path]:
    return folder / f"{key.digest}.timing", folder / f"{key.digest}.json"


def _note_of(key: TimingKey, timings: bytes) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        **asdict(key),
        "bytes": len(timings),
        "sha256": hashlib.sha256(timings).hexdigest(),
    }


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"longer than {most} bytes")
    return data


def _rebuilt(path: Path, reason: str) -> str:
    return f"{path}: these kernel timings are damaged ({reason}); they are measured again."
