"""Calibration files of every kind, damaged: a record that can be written again, or one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fuzzing import SEEDS, damaged_bytes, damaged_json, fuzz, outcome

from fdda_deploy.calib_cache import formats
from fdda_deploy.calib_cache.record import CalibrationRecord, TensorCalibration
from fdda_deploy.errors import CalibrationError
from fdda_deploy.quant.qparams import QParams


def _tensor(amax: float, role: str) -> TensorCalibration:
    scale = np.float32(amax / 127)
    return TensorCalibration(QParams(scale, -128 + (role == "weight"), 127), amax, "mse", role)


RECORD = CalibrationRecord(
    tensors={
        "input": _tensor(2.64, "activation"),
        "layer1/Relu:0": _tensor(6.0, "activation"),
        "logits": _tensor(21.5, "activation"),
        "conv.weight": _tensor(0.5, "weight"),
    },
    model_digest="a" * 64,
    data_digest="",
    scheme="w8a8",
    target="trt",
    algorithm="mse",
    tool_version="0.1.0",
)
ORT_JSON = {
    "CLS": "TensorsData",
    "data": {"input": {"CLS": "TensorData", "lowest": -1.0, "highest": 2.64}},
}
FILES = {form: formats.write(RECORD, form) for form in formats.WRITTEN}
FILES |= {"record": RECORD.to_json().encode(), "ort-json": json.dumps(ORT_JSON).encode()}
JSON_FILES = [form for form in FILES if FILES[form].startswith(b"{")]


def read_and_write(data: bytes) -> None:
    """Reads a file, and writes what was read in every format that takes it."""
    _, record = formats.read(data)
    assert CalibrationRecord.from_json(record.to_json()) == record
    for form in formats.WRITTEN:
        outcome(lambda form=form: formats.write(record, form))  # type: ignore[misc]


def test_every_format_has_a_sound_file_here() -> None:
    assert FILES.keys() == formats.FORMATS.keys()
    assert {form: formats.read(data)[0] for form, data in FILES.items()} == {f: f for f in FILES}


@pytest.mark.parametrize("form", FILES)
@fuzz(500, seed=SEEDS)
def test_a_damaged_table_is_read_or_refused(form: str, seed: int) -> None:
    outcome(lambda: read_and_write(damaged_bytes(FILES[form], seed)))


@pytest.mark.parametrize("form", JSON_FILES)
@fuzz(500, seed=SEEDS)
def test_a_table_with_strange_values_is_read_or_refused(form: str, seed: int) -> None:
    strange = json.dumps(damaged_json(json.loads(FILES[form]), seed))
    outcome(lambda: read_and_write(strange.encode()))


@pytest.mark.parametrize("count", [2**20, 2**31 - 1, 2**32 - 1])
def test_a_flatbuffer_that_claims_a_billion_entries_is_refused_unread(count: int) -> None:
    data = bytearray(FILES["ort"])
    data[20:24] = count.to_bytes(4, "little")
    with pytest.raises(CalibrationError, match=f"{count} entries, at most 100000"):
        formats.read(bytes(data))
