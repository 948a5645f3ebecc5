"""Plain JSON tables, ``{"tensor": {"amax": 2.64}}``: what quantization toolkits dump, and ours.

Per tensor any of ``amax`` or ``_amax`` (the spelling of NVIDIA's Model Optimizer), ``scale``,
``zero_point``, ``num_bits`` or ``qmin`` and ``qmax``, ``axis``, ``role``, ``algorithm``. One number
is an activation's grid; a list, or nested lists with one dimension above 1, are a weight's, one
value a channel. With both ``amax`` and ``scale`` the scale counts; a scale of 127/amax is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fdda_deploy.calib_cache import record_json
from fdda_deploy.calib_cache.record import (
    CalibrationRecord,
    TensorCalibration,
    foreign_record,
    tensor_to_plain,
)
from fdda_deploy.errors import CalibrationError
from fdda_deploy.quant.affine import signed_range
from fdda_deploy.quant.qparams import E4M3_MAX, SMALLEST_SCALE, FloatArray, QParams

ORIGIN = "json"
_KEYS = {
    *("amax", "_amax", "scale", "_scale", "zero_point", "_zero_point", "num_bits", "_num_bits"),
    *("qmin", "qmax", "axis", "role", "algorithm"),
}
_ROUNDED = 1e-3
"""Other tools round amax and scale apart, some to three digits."""


def record_from_plain(plain: Mapping[str, Any]) -> CalibrationRecord:
    """Returns a parsed JSON table as a record.

    Raises:
        CalibrationError: An unknown key, a tensor with neither ``amax`` nor ``scale``, an inverted
            pair of them, or numbers that make no grid; names the tensor.
    """
    record_json.check_names(plain, "calibration table")
    tensors: dict[str, TensorCalibration] = {}
    unexcited: dict[str, float] = {}
    for name, entry in plain.items():
        where = f"calibration table: {record_json.shown(name)}"
        if not isinstance(entry, dict):
            raise CalibrationError(
                f'{where}: want an object such as {{"amax": 2.64}}, because a bare number does '
                "not say whether it is amax or scale."
            )
        try:
            found = _tensor(_plain_keys(entry, where), where)
        except CalibrationError as error:
            message = str(error)
            named = message if message.startswith(where) else f"{where}: {message}"
            raise CalibrationError(named) from error
        if isinstance(found, float):
            unexcited[name] = found
        else:
            tensors[name] = found
    return foreign_record(tensors, origin=ORIGIN, algorithm="", unexcited=unexcited)


def json_from_record(record: CalibrationRecord) -> str:
    """Returns every grid of ``record`` as such a table, which `record_from_plain` reads back.

    Raises:
        CalibrationError: Scales of blocks, which this form does not have.
    """
    plain: dict[str, dict[str, Any]] = {}
    for name, tensor in record.tensors.items():
        if tensor.qparams.block_size is not None:
            raise CalibrationError(
                f"{record_json.shown(name)}: scales of blocks have no place in a plain table. "
                "Keep the record itself."
            )
        entry = tensor_to_plain(tensor)
        del entry["block_size"]
        plain[name] = {key: value for key, value in entry.items() if value not in (None, "")}
    plain |= {name: {"scale": float(scale)} for name, scale in record.unexcited.items()}
    return json.dumps(plain, indent=1, allow_nan=False) + "\n"


def _plain_keys(entry: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns ``entry`` without the underscores that some tools put before their names."""
    unknown = sorted(set(entry) - _KEYS)
    if unknown:
        raise CalibrationError(
            f"{where}: unknown key {record_json.shown(unknown[0])}; want amax, scale, zero_point, "
            "num_bits, qmin, qmax, axis, role or algorithm."
        )
    plain = {key.removeprefix("_"): value for key, value in entry.items()}
    if len(plain) != len(entry):
        raise CalibrationError(f"{where}: a key stands twice, with and without underscore.")
    if not {"amax", "scale"} & plain.keys():
        raise CalibrationError(f"{where}: neither amax nor scale. Write the table again.")
    return plain


def _tensor(plain: dict[str, Any], where: str) -> TensorCalibration | float:
    """Returns the tensor's grid, or its scale where that is too small for one."""
    qmin, qmax = _integer_range(plain, where)
    scale, amax, axis = _numbers(plain, qmax, where)
    if scale.ndim == 0 and scale < SMALLEST_SCALE:
        if scale < 0:
            raise CalibrationError(f"{where}: scale {float(scale)} is negative. Recalibrate.")
        return float(scale)
    qparams = QParams(
        scale=scale,
        qmin=qmin,
        qmax=qmax,
        axis=axis,
        zero_point=record_json.whole({"zero_point": 0} | plain, "zero_point", (-128, 127), where),
    )
    role = "activation" if scale.ndim == 0 else "weight"
    kept = amax if amax is not None else scale.astype(np.float64) * qmax
    return TensorCalibration(
        qparams,
        tuple(kept.reshape(-1).tolist()) if kept.ndim else float(kept),
        record_json.text({"algorithm": "", **plain}, "algorithm", where),
        record_json.text({"role": role, **plain}, "role", where),
    )


def _integer_range(plain: dict[str, Any], where: str) -> tuple[int, int]:
    bits = record_json.whole({"num_bits": 8, **plain}, "num_bits", (2, 8), where)
    low, high = signed_range(bits)
    filled = {"qmin": low, "qmax": high, **plain}
    widest = (-E4M3_MAX, E4M3_MAX)  # QParams refuses all but INT8's and FP8's
    qmin, qmax = (record_json.whole(filled, key, widest, where) for key in ("qmin", "qmax"))
    if qmax < 1:
        raise CalibrationError(f"{where}: qmax is {qmax}, want 1 or more. Recalibrate.")
    return qmin, qmax


def _numbers(
    plain: dict[str, Any], qmax: int, where: str
) -> tuple[FloatArray, npt.NDArray[np.float64] | None, int | None]:
    """Returns scale, amax where it is given, and the channel axis, None for one number."""
    given = [key for key in ("scale", "amax") if key in plain]
    shaped = {key: record_json.float64_array(plain, key, where) for key in given}
    values, axis = {}, None
    for key, array in shaped.items():
        values[key], axis = _per_channel(array, plain.get("axis"), f"{where}.{key}")
    amax = values.get("amax")
    if amax is not None and (amax < 0).any():
        raise CalibrationError(f"{where}: amax is negative. Recalibrate.")
    scale = values.get("scale")
    if scale is None:
        assert amax is not None
        scale = amax / qmax
    elif amax is not None:
        _refuse_inverted(scale, amax, qmax, where)
    with np.errstate(over="ignore", under="ignore"):
        narrow = scale.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise CalibrationError(f"{where}: a number is too large for float32. Recalibrate.")
    return narrow, amax, axis


def _per_channel(
    array: npt.NDArray[np.float64], axis: object, where: str
) -> tuple[npt.NDArray[np.float64], int | None]:
    """Returns one number, or one a channel, and the axis of the channels."""
    wide = [dimension for dimension, size in enumerate(array.shape) if size > 1]
    if len(wide) > 1:
        raise CalibrationError(f"{where}: shape {array.shape}; want one value, or one a channel.")
    if axis is None and not wide:
        return array.reshape(()), None
    if axis is None:
        return array.reshape(-1), wide[0]
    named = record_json.whole({"axis": axis}, "axis", (0, 7), where)
    return array.reshape(-1), named


def _refuse_inverted(
    scale: npt.NDArray[np.float64], amax: npt.NDArray[np.float64], qmax: int, where: str
) -> None:
    """Refuses scales that are the reciprocals of what their amax says.

    Other differences are sound: the lower end may have set the grid, or the algorithm clipped.
    """
    if scale.shape != amax.shape:
        raise CalibrationError(
            f"{where}: {scale.size} scales but {amax.size} values of amax. Write the table again."
        )
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        inverted = np.abs(scale * amax / qmax - 1) < _ROUNDED
        plausible = np.abs(scale * qmax / amax - 1) < _ROUNDED
    if bool((inverted & ~plausible & (amax > 0)).all()):
        raise CalibrationError(
            f"{where}: scale is {qmax}/amax where amax/{qmax} belongs. Write the table again with "
            "the reciprocals, or leave scale out."
        )
