"""JSON Schema of a calibration record, from the names and bounds that its reader enforces."""

from __future__ import annotations

from typing import Any

from fdda_deploy.calib_cache.record import ROLES, SCHEMA
from fdda_deploy.calib_cache.record_json import (
    MAX_DEPTH,
    MAX_TENSORS,
    MAX_TEXT,
    RECORD_TEXTS,
    TENSOR_KEYS,
)
from fdda_deploy.quant.qparams import E4M3_MAX, SMALLEST_SCALE


def record_schema() -> dict[str, Any]:
    """Returns the JSON Schema (2020-12) of calibration.json; the reader checks more than it says.

    What no schema can say: a scale's shape fits its axis, a range holds its zero-point, a tensor
    stands in ``tensors`` or in ``unexcited``.
    """
    # long: one document, read from top to bottom beside the reader that it describes
    text = {"type": "string", "maxLength": MAX_TEXT}
    name = {"maxLength": MAX_TEXT}
    integer = {"type": "integer", "minimum": -E4M3_MAX, "maximum": E4M3_MAX}
    amax = {"type": "number", "minimum": 0}
    fields: dict[str, Any] = {
        "role": {"enum": list(ROLES)},
        "algorithm": text,
        "amax": {"anyOf": [amax, {"type": "array", "items": amax}]},
        "scale": {"$ref": "#/$defs/scale"},
        "zero_point": integer,
        "qmin": integer,
        "qmax": integer,
        "axis": {"type": ["integer", "null"], "minimum": 0, "maximum": 7},
        "block_size": {"type": ["integer", "null"], "minimum": 1, "maximum": 2**31},
    }
    assert fields.keys() == TENSOR_KEYS, "the reader knows other keys"
    scale: dict[str, Any] = {"type": "number", "exclusiveMinimum": 0}
    nested = scale
    for _ in range(MAX_DEPTH):
        nested = {"anyOf": [scale, {"type": "array", "minItems": 1, "items": nested}]}
    properties: dict[str, Any] = dict.fromkeys(RECORD_TEXTS, text) | {
        "schema": {"const": SCHEMA},
        "origin": text,
        "unexcited": {
            "type": "object",
            "maxProperties": MAX_TENSORS,
            "propertyNames": name,
            "additionalProperties": {"type": "number", "minimum": 0, "maximum": SMALLEST_SCALE},
        },
        "tensors": {
            "type": "object",
            "maxProperties": MAX_TENSORS,
            "propertyNames": name,
            "additionalProperties": {"$ref": "#/$defs/tensor"},
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"fdda-deploy calibration.json, version {SCHEMA}",
        "type": "object",
        "required": sorted({*RECORD_TEXTS, "schema", "tensors"}),
        "additionalProperties": False,
        "properties": dict(sorted(properties.items())),
        "$defs": {
            "scale": {"description": "Real units per integer step; nested by channel.", **nested},
            "tensor": {
                "description": "The grid of one tensor and where it comes from.",
                "type": "object",
                "required": sorted(TENSOR_KEYS),
                "additionalProperties": False,
                "properties": dict(sorted(fields.items())),
            },
        },
    }
