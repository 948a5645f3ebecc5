"""What a calibration found, tensor by tensor, with digests that say what it belongs to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fdda_deploy import __version__
from fdda_deploy.calib_cache import record_json
from fdda_deploy.errors import CalibrationError
from fdda_deploy.quant.qparams import E4M3_MAX, SMALLEST_SCALE, QParams

SCHEMA = 1
ROLES = ("activation", "weight")
_REST = ("schema", "tensors", "origin", "unexcited")
MAX_TEXT_CHARS = 256 * 2**20
"""A longer file is refused unread: the largest networks we quantize need a tenth of it."""


@dataclass(frozen=True, eq=False)
class TensorCalibration:
    """The grid of one tensor and where it comes from.

    Attributes:
        qparams: The grid that is executed.
        amax: Largest absolute value that the algorithm settled on, in real units: one number per
            tensor, or one per channel or block in the order of ``qparams.scale``.
        algorithm: For instance ``mse``, ``minmax``, ``entropy``.
        role: ``activation`` or ``weight``.

    Raises:
        CalibrationError: An unknown role, or an ``amax`` that is negative, not finite, or a list of
            another length than the scale.
    """

    qparams: QParams
    amax: float | tuple[float, ...]
    algorithm: str
    role: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise CalibrationError(f"role is {self.role!r}, want {' or '.join(ROLES)}.")
        amax = _plain(self.amax)
        object.__setattr__(self, "amax", amax)
        values = np.asarray(amax, dtype=np.float64)
        if not np.isfinite(values).all() or (values < 0).any():
            raise CalibrationError("amax has a value that is negative or not finite. Recalibrate.")
        if isinstance(amax, tuple) and len(amax) != self.qparams.scale.size:
            raise CalibrationError(
                f"amax has {len(amax)} values, the scale {self.qparams.scale.size}. Recalibrate."
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorCalibration):
            return NotImplemented
        return tensor_to_plain(self) == tensor_to_plain(other)

    def __hash__(self) -> int:
        return hash((self.amax, self.algorithm, self.role))


@dataclass(frozen=True)
class CalibrationRecord:
    """Everything one calibration produced, and what it was made from.

    Attributes:
        tensors: Grid by ONNX tensor or initializer name.
        model_digest: Of the float network.
        data_digest: Of the images; empty without images.
        scheme: For instance ``w4a8``.
        target: Whose placement table: ``trt``, ``rtx``, ``ort-cpu``.
        algorithm: Default range algorithm; a tensor may have its own.
        tool_version: Of fdda-deploy.
        origin: Where an imported table came from, for instance ``TRT-101601-EntropyCalibration2``;
            empty for what fdda-deploy calibrated itself.
        unexcited: Scale by tensor, 0 or subnormal, of tensors in an imported table that no image
            excited; no grid can hold them, and a table written again has them still.
        schema: Version of the file format, 1.

    Raises:
        CalibrationError: An unexcited tensor with a scale that a grid could hold, or a second one;
            a name with half of a surrogate pair, which JSON can hold and no ONNX file can.
    """

    tensors: Mapping[str, TensorCalibration]
    model_digest: str
    data_digest: str
    scheme: str
    target: str
    algorithm: str
    tool_version: str
    origin: str = ""
    unexcited: Mapping[str, float] = field(default_factory=dict)
    schema: int = field(default=SCHEMA)

    def __post_init__(self) -> None:
        for name in (*self.tensors, *self.unexcited):
            record_json.require_unicode(name)
        for name, scale in self.unexcited.items():
            if not 0 <= scale < SMALLEST_SCALE or name in self.tensors:
                raise CalibrationError(
                    f"unexcited.{record_json.shown(name)}: scale {scale}; want one below "
                    f"{SMALLEST_SCALE:.3g} of a tensor that has no grid. Import the table again."
                )

    def to_json(self) -> str:
        """Returns the record as JSON text that `from_json` reads back bit for bit.

        Tensors keep their order; ``origin`` and ``unexcited`` are written where there are any.
        """
        plain: dict[str, Any] = {key: getattr(self, key) for key in record_json.RECORD_TEXTS}
        plain["schema"] = self.schema
        if self.origin:
            plain["origin"] = self.origin
        if self.unexcited:
            plain["unexcited"] = {name: float(scale) for name, scale in self.unexcited.items()}
        plain = dict(sorted(plain.items()))
        plain["tensors"] = {name: tensor_to_plain(t) for name, t in self.tensors.items()}
        return json.dumps(plain, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CalibrationRecord:
        """Returns the record that ``text`` holds.

        Raises:
            CalibrationError: Not JSON, an unknown, missing or doubled key, a wrong type, a number
                that is not finite, or too much of anything; the message names the key.
        """
        if len(text) > MAX_TEXT_CHARS:
            raise CalibrationError(
                f"calibration record: {len(text)} characters, at most {MAX_TEXT_CHARS} are read."
            )
        plain = {"origin": "", "unexcited": {}, **record_json.load(text)}
        record_json.check_keys(plain, {*record_json.RECORD_TEXTS, *_REST}, "record")
        if record_json.whole(plain, "schema", (0, 2**31)) != SCHEMA:
            raise CalibrationError(
                f"schema: the record has {plain['schema']}, this version reads {SCHEMA}. "
                "Recalibrate, or update fdda-deploy."
            )
        texts = {key: record_json.text(plain, key) for key in record_json.RECORD_TEXTS}
        entries = record_json.tensor_entries(plain)
        tensors = {name: _tensor_from_plain(name, entry) for name, entry in entries}
        return cls(
            tensors=tensors,
            origin=record_json.text(plain, "origin"),
            unexcited=record_json.numbers(plain, "unexcited"),
            schema=SCHEMA,
            **texts,
        )


def foreign_record(
    tensors: Mapping[str, TensorCalibration],
    *,
    origin: str,
    algorithm: str,
    unexcited: Mapping[str, float],
) -> CalibrationRecord:
    """Returns the record of a table that another tool made: of what network, nobody knows."""
    return CalibrationRecord(
        tensors,
        model_digest="",
        data_digest="",
        scheme="w8a8",
        target="",
        algorithm=algorithm,
        tool_version=__version__,
        origin=origin,
        unexcited=unexcited,
    )


def staleness(
    record: CalibrationRecord, *, model_digest: str, data_digest: str, scheme: str, target: str
) -> str | None:
    """Returns what changed since ``record`` was made, None when it still fits.

    Example:
        >>> record = CalibrationRecord({}, "a1", "b2", "w8a8", "rtx", "mse", "0.1")
        >>> staleness(record, model_digest="a1", data_digest="b2", scheme="w4a8", target="rtx")
        'the scheme changed from w8a8 to w4a8'
    """
    wanted = {
        "network": (record.model_digest, model_digest),
        "calibration images": (record.data_digest, data_digest),
        "scheme": (record.scheme, scheme),
        "target": (record.target, target),
    }
    changes = [
        f"the {what} changed from {old[:12] or 'none'} to {new[:12] or 'none'}"
        for what, (old, new) in wanted.items()
        if old != new
    ]
    return "; ".join(changes) or None


def tensor_to_plain(tensor: TensorCalibration) -> dict[str, Any]:
    """Returns ``tensor`` as JSON values; float32 scales as the doubles that equal them."""
    qparams = tensor.qparams
    plain = {
        "role": tensor.role,
        "algorithm": tensor.algorithm,
        "amax": list(tensor.amax) if isinstance(tensor.amax, tuple) else tensor.amax,
        "scale": qparams.scale.astype(np.float64).tolist(),
        "zero_point": qparams.zero_point,
        "qmin": qparams.qmin,
        "qmax": qparams.qmax,
        "axis": qparams.axis,
        "block_size": qparams.block_size,
    }
    return dict(sorted(plain.items()))


def _tensor_from_plain(name: str, plain: dict[str, Any]) -> TensorCalibration:
    where = f"tensors.{record_json.shown(name)}"
    record_json.check_keys(plain, record_json.TENSOR_KEYS, where)
    integers = (-E4M3_MAX, E4M3_MAX)  # QParams refuses all but INT8's and FP8's
    try:
        qparams = QParams(
            scale=record_json.float32_array(plain, "scale", where),
            qmin=record_json.whole(plain, "qmin", integers, where),
            qmax=record_json.whole(plain, "qmax", integers, where),
            axis=record_json.optional_whole(plain, "axis", (0, 7), where),
            zero_point=record_json.whole(plain, "zero_point", integers, where),
            block_size=record_json.optional_whole(plain, "block_size", (1, 2**31), where),
        )
        return TensorCalibration(
            qparams,
            record_json.number_or_list(plain, "amax", where),
            record_json.text(plain, "algorithm", where),
            record_json.text(plain, "role", where),
        )
    except CalibrationError as error:
        message = str(error)
        named = message if message.startswith(where) else f"{where}: {message}"
        raise CalibrationError(named) from error


def _plain(amax: float | Iterable[float]) -> float | tuple[float, ...]:
    """Returns ``amax`` as Python floats, so that records compare and print exactly."""
    values = np.asarray(amax, dtype=np.float64)
    return float(values) if values.ndim == 0 else tuple(values.reshape(-1).tolist())
