"""INT8 calibration by TensorRT 10 itself, fed with our images; TensorRT 11 and RTX have none.

TensorRT calls the object while it builds. It swallows what such a call raises, so the first error
is kept and raised after the build. NVIDIA removed the classes in TensorRT 11: there the calibration
record becomes Q/DQ pairs, which is what every other backend gets anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from fdda_deploy.engines.calibration_feed import ALGORITHMS, BatchFeed, Images, TableFile
from fdda_deploy.engines.device_memory import DeviceMemory
from fdda_deploy.engines.trt_api import TrtApi
from fdda_deploy.engines.trt_capabilities import CALIBRATORS
from fdda_deploy.errors import ConfigError

Result = TypeVar("Result")


class TrtCalibration:
    """One calibration: the object that TensorRT calls, and what came of it.

    Attributes:
        calibrator: Instance of TensorRT's class, for ``IBuilderConfig.int8_calibrator``.
        feed: The images.
        table: The cache.
    """

    def __init__(self, feed: BatchFeed, table: TableFile) -> None:
        self.feed = feed
        self.table = table
        self.calibrator: Any = None
        self._error: Exception | None = None

    def guarded(self, call: Callable[[], Result], otherwise: Result) -> Result:
        """Returns what ``call`` returns; keeps the first error and returns ``otherwise``."""
        if self._error is not None:
            return otherwise
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - raised again by raise_last_error
            self._error = error
            return otherwise

    def raise_last_error(self) -> None:
        """Raises the first error of any call, if there was one."""
        if self._error is not None:
            raise self._error


def make_calibrator(
    api: TrtApi,
    batches: Iterable[Images],
    memory: DeviceMemory,
    *,
    cache: Path | None = None,
    key: str = "",
    kind: str = "entropy2",
) -> TrtCalibration:
    """Returns a calibration that ``build_plan`` takes.

    Args:
        api: A TensorRT with calibrator classes.
        batches: ``(batch, C, H, W)`` float32 images, preprocessed.
        memory: Device and pinned memory; the caller closes it after the build.
        cache: TensorRT's text table, read before and written after; None keeps none.
        key: What the table belongs to: a digest of network and images.
        kind: ``entropy2`` or ``minmax``.

    Raises:
        ConfigError: This TensorRT has no such calibrator; the message says what to do instead.
        CalibrationError: No images.
    """
    if kind not in CALIBRATORS:
        raise ConfigError(f"calibrator {kind}: want {' or '.join(CALIBRATORS)}.")
    if kind not in api.capabilities.calibrators:
        raise ConfigError(
            f"--calibrator trt: {api.title} has no {CALIBRATORS[kind]}, as none has since "
            "TensorRT 11. Leave it out: the calibration record goes in as Q/DQ pairs."
        )
    calibration = TrtCalibration(BatchFeed(batches, memory), TableFile(cache, kind, key))
    calibration.calibrator = _calibrator_class(api, kind)(calibration)
    return calibration


def record_of(calibration: TrtCalibration, api: TrtApi, kind: str) -> dict[str, object]:
    """Returns what was done, for the report: which TensorRT, which algorithm, how many images."""
    feed = calibration.feed
    return {
        "by": api.title,
        "algorithm": ALGORITHMS[kind],
        "images": feed.num_fed * feed.batch_size,
        "images_digest": feed.digest if feed.num_fed else None,
        "table_reused": calibration.table.was_reused,
        "notes": list(calibration.table.notes),
    }


def told(api: TrtApi) -> str:
    """Returns what ``--calibrator trt`` does with this TensorRT, a sentence for the report."""
    if api.capabilities.calibrators:
        return (
            f"{api.title} calibrated the float network itself, on our images: its own ranges and "
            "its own rounding of weights, not ours."
        )
    return (
        f"--calibrator trt: {api.title} has no calibrators (gone since TensorRT 11), so our "
        "calibration record went in as Q/DQ pairs."
    )


def _calibrator_class(api: TrtApi, kind: str) -> Any:
    base: Any = getattr(api.module, CALIBRATORS[kind])

    class Calibrator(base):  # type: ignore[misc]  # the bindings carry no types
        """TensorRT's class over ours: one line a call."""

        def __init__(self, calibration: TrtCalibration) -> None:
            base.__init__(self)  # pybind11 refuses an object whose base was not initialised
            self._ours = calibration

        def get_batch_size(self) -> int:
            return self._ours.feed.batch_size

        def get_batch(self, names: list[str]) -> list[int] | None:
            address = self._ours.guarded(self._ours.feed.next_address, None)
            return None if address is None else [address] * len(names)

        def read_calibration_cache(self) -> bytes | None:
            return self._ours.guarded(self._ours.table.read, None)

        def write_calibration_cache(self, cache: Any) -> None:
            self._ours.guarded(lambda: self._ours.table.write(bytes(cache)), None)

    return Calibrator
