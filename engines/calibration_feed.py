"""What TensorRT 10's calibrator asks for, without TensorRT: batches in order, and a cache to trust.

`engines.trt_calibrator` wraps these two in the class that TensorRT calls. They hold all of the
logic, so that it can be tested where no TensorRT 10 is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fdda_deploy.calib_cache.store import atomic_write_bytes, load_table
from fdda_deploy.calib_cache.trt_table import parse
from fdda_deploy.engines.device_memory import DeviceMemory
from fdda_deploy.errors import CalibrationError

Images = npt.NDArray[np.float32]
ALGORITHMS = {"entropy2": "EntropyCalibration2", "minmax": "MinMaxCalibration"}
"""What a calibration table's first line calls our kinds of calibrator."""


class BatchFeed:
    """Batches of images on the GPU, one after the other, through one pinned buffer.

    Args:
        batches: ``(batch, C, H, W)`` float32; all but the last have one shape, and a smaller last
            one is left out: TensorRT wants one batch size.
        memory: Where the one device buffer is allocated; the caller closes it.

    Raises:
        CalibrationError: No batch, or one of another type or shape, or with a value that is not
            finite.
    """

    def __init__(self, batches: Iterable[Images], memory: DeviceMemory) -> None:
        self._batches = iter(batches)
        self._memory = memory
        self._next: Images | None = next(self._batches, None)
        if self._next is None:
            raise CalibrationError(
                "calibrator: no images. Give --calib-data, or let --recipe make some."
            )
        self.shape: tuple[int, ...] = self._next.shape
        self.num_fed = 0
        self._digest = hashlib.sha256()
        self._host: npt.NDArray[np.uint8] | None = None
        self._address = 0

    @property
    def batch_size(self) -> int:
        """Images in each batch."""
        return self.shape[0]

    @property
    def digest(self) -> str:
        """SHA-256 of the images fed so far."""
        return self._digest.hexdigest()

    def next_address(self) -> int | None:
        """Returns the device address of the next batch, or None behind the last one.

        Raises:
            CalibrationError: The batch does not fit the first one, or is not finite.
            EngineError: A CUDA call failed.
        """
        batch = self._next
        if batch is None:
            return None
        if self.num_fed and batch.shape != self.shape and self._is_rest(batch):
            self._next = None
            return None
        self._require_sound(batch)
        if self._host is None:
            self._host = self._memory.pinned(batch.nbytes)
            self._address = self._memory.allocate(batch.nbytes)
        self._host[:] = np.ascontiguousarray(batch).view(np.uint8).reshape(-1)
        self._memory.copy_to_device(self._address, self._host)
        self._memory.synchronize()  # TensorRT reads on a stream of its own
        self._digest.update(self._host.tobytes())
        self.num_fed += 1
        self._next = next(self._batches, None)
        return self._address

    def _is_rest(self, batch: Images) -> bool:
        same_images = batch.ndim == len(self.shape) and batch.shape[1:] == self.shape[1:]
        return same_images and len(batch) < self.batch_size

    def _require_sound(self, batch: Images) -> None:
        where = f"calibrator: batch {self.num_fed + 1}"
        if batch.dtype != np.float32 or batch.shape != self.shape or batch.size == 0:
            raise CalibrationError(
                f"{where} is {batch.dtype} {batch.shape}, want float32 {self.shape} and not empty. "
                "Preprocess all images alike."
            )
        if not np.isfinite(batch).all():
            raise CalibrationError(f"{where} has values that are not finite. Check the images.")


class TableFile:
    """TensorRT's calibration table in a file, used again only for the same network and images.

    Args:
        path: The table; ``None`` keeps none. A line beside it (``.key``) says what it belongs to.
        kind: ``entropy2`` or ``minmax``.
        key: Digest of network and images; a table of another one is measured again.
    """

    def __init__(self, path: Path | None, kind: str, key: str) -> None:
        self._path = path
        self._algorithm = ALGORITHMS[kind]
        self._key = key
        self.notes: list[str] = []
        self.was_reused = False

    def read(self) -> bytes | None:
        """Returns the table's bytes, or None to calibrate; why it is not used goes to ``notes``."""
        path = self._path
        if path is None or not path.exists():
            return None
        try:
            table = load_table(path)
            key = self._key_path(path).read_text(encoding="utf-8").strip()
        except (CalibrationError, OSError, UnicodeDecodeError) as error:
            self.notes.append(f"{path}: not used again ({error}); calibrated anew.")
            return None
        if table.algorithm != self._algorithm or key != self._key:
            what = "network or images" if key != self._key else "algorithm"
            self.notes.append(f"{path}: of another {what}; calibrated anew.")
            return None
        self.was_reused = True
        return path.read_bytes()

    def write(self, data: bytes) -> None:
        """Keeps the table that TensorRT made.

        Raises:
            CalibrationError: It is no such table, or cannot be written.
        """
        parse(data)
        if self._path is None:
            return
        atomic_write_bytes(self._path, data)
        atomic_write_bytes(self._key_path(self._path), f"{self._key}\n".encode())

    @staticmethod
    def _key_path(path: Path) -> Path:
        return path.with_name(f"{path.name}.key")
