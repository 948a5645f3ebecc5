"""A calibration table and the float ONNX file it belongs to give a Q/DQ graph for TensorRT 11.

TensorRT 11 reads no calibration tables. Its Q/DQ pairs say the same: activations take the table's
scales bit for bit, weights amax / 127 per output channel, as TensorRT 10 computes them itself where
a table is all it has. Where the pairs go is `placement`'s decision, not the table's: TensorRT 10
chose by timing which of the tensors in the table to run in INT8.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from fdda_deploy.calib_cache.inversion import activation_scales, reciprocal, refuse_inverted
from fdda_deploy.calib_cache.record import CalibrationRecord
from fdda_deploy.calib_cache.record_json import shown
from fdda_deploy.errors import CalibrationError, ExportError
from fdda_deploy.exporters import names, trt_rules
from fdda_deploy.exporters.absorbed import IntegerWeight
from fdda_deploy.exporters.float_view import FloatView
from fdda_deploy.exporters.foreign_float import prepared
from fdda_deploy.exporters.known_ranges import VIEWS, known_bounds
from fdda_deploy.exporters.norm_folding import read_by_bodies
from fdda_deploy.exporters.placement import place
from fdda_deploy.exporters.qdq import Grids, insert_qdq
from fdda_deploy.quant.affine import qparams_from_amax, quantize
from fdda_deploy.quant.points import Placement, WeightPoint
from fdda_deploy.quant.qparams import QParams
from fdda_deploy.quant.scheme import Scheme

SCHEME = Scheme(weight_bits=8, act_bits=8)
MISSING = ("error", "float")
"""What to do about a layer whose input the table lacks: refuse, or leave the layer in float."""
_SHOWN = 3


@dataclass(frozen=True)
class Applied:
    """A Q/DQ graph and how the table was used.

    Attributes:
        model: The graph.
        placement: Where the pairs are, and which layers stayed in float, with reasons.
        taken: Tensor of the table by tensor of the graph, for each activation pair: another name
            where the graph's tensor is a view (Reshape, Flatten ...) of the table's.
        unknown: Tensors of the table that the graph does not have.
        missing: Tensors that the placement wanted and the table lacks (``missing="float"``).
    """

    model: onnx.ModelProto
    placement: Placement
    taken: Mapping[str, str]
    unknown: tuple[str, ...]
    missing: tuple[str, ...]


def apply_table(
    record: CalibrationRecord,
    model: onnx.ModelProto,
    target: str,
    *,
    missing: str = "error",
    inverted: bool = False,
) -> Applied:
    """Returns the Q/DQ twin of ``model`` with the activation grids of ``record``.

    Args:
        record: A table as `calib_cache.formats.read` gives it; its weights, if any, are not used.
        model: The float network that was calibrated, from whatever exporter.
        target: ``trt``, ``rtx`` or ``ort-cpu``.
        missing: One of `MISSING`.
        inverted: The table holds 127/amax, on purpose: take the reciprocals.

    Raises:
        CalibrationError: The table is inverted (or with ``inverted`` is not), has none of the
            graph's tensors, or lacks some that are needed; names the nearest ones.
        ExportError: The graph cannot be quantized, or the result would break a TensorRT rule.
    """
    plain = prepared(model)
    view = FloatView(plain.graph)
    record = _right_way_round(record, plain.graph, inverted)
    grids = _activation_grids(record)
    known = dict.fromkeys(view.tensors())
    _require_some_in(known, record)
    sources = _sources(view, grids)
    placement = _placed(plain, target, known)
    absent = [p.tensor for p in placement.activations if p.tensor not in sources]
    if absent:
        if missing == "error":
            _refuse_absent(absent, record)
        placement = _placed(plain, target, sources)
    _require_points(plain.graph, placement)
    taken = {point.tensor: sources[point.tensor] for point in placement.activations}
    filled = Grids(
        {tensor: grids[source] for tensor, source in taken.items()},
        _integer_weights(plain.graph, placement.weights),
        parameters={},
    )
    metadata = {
        "fdda_deploy.scheme": SCHEME.name,
        "fdda_deploy.target": target,
        "fdda_deploy.calibration_origin": record.origin,
    }
    result = insert_qdq(plain, placement, filled, metadata)
    _require_rules(result, target)
    unknown = tuple(name for name in record.tensors if name not in known)
    return Applied(result, placement, taken, unknown, tuple(absent))


def _right_way_round(
    record: CalibrationRecord, graph: onnx.GraphProto, inverted: bool
) -> CalibrationRecord:
    bounds = known_bounds(graph)
    if inverted:
        return reciprocal(record, bounds)
    refuse_inverted(activation_scales(record), bounds)
    return record


def _placed(model: onnx.ModelProto, target: str, tensors: Collection[str]) -> Placement:
    kept = read_by_bodies(model.graph) | {value.name for value in model.graph.output}
    constants = {t.name: t for t in model.graph.initializer if t.name not in kept}
    return place(model, SCHEME, target, torch_tensors=tensors, parameters=constants)


def _activation_grids(record: CalibrationRecord) -> dict[str, QParams]:
    return {
        name: tensor.qparams
        for name, tensor in record.tensors.items()
        if tensor.role == "activation" and tensor.qparams.scale.ndim == 0
    }


def _sources(view: FloatView, grids: Mapping[str, QParams]) -> dict[str, str]:
    """Returns the table's tensor for every tensor of the graph that has one, itself or its view."""
    found: dict[str, str] = {}
    for tensor in view.tensors():
        producer = view.producer.get(tensor)
        if tensor in grids:
            found[tensor] = tensor
        elif producer is not None and producer.op_type in VIEWS and producer.input[0] in found:
            found[tensor] = found[producer.input[0]]
    return found


def _integer_weights(
    graph: onnx.GraphProto, points: Collection[WeightPoint]
) -> dict[str, IntegerWeight]:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[str, IntegerWeight] = {}
    for point in points:
        weight = numpy_helper.to_array(constants[point.initializer])
        if not np.isfinite(weight).all():
            raise ExportError(f"{point.initializer}: the weight has values that are not finite.")
        others = tuple(axis for axis in range(weight.ndim) if axis != point.axis)
        qparams = qparams_from_amax(np.abs(weight).max(axis=others), point.num_bits, point.axis)
        found[point.initializer] = quantize(weight, qparams), qparams
    return found


def _require_some_in(known: Collection[str], record: CalibrationRecord) -> None:
    listed = [*record.tensors, *record.unexcited]
    if not listed:
        raise CalibrationError("the calibration table has no tensors. Calibrate again.")
    if any(name in known for name in listed):
        return
    raise CalibrationError(
        f"none of the table's {len(listed)} tensors is in the graph: "
        f"{_with_near(listed[:_SHOWN], known)}. Give the ONNX file that was calibrated."
    )


def _refuse_absent(absent: Collection[str], record: CalibrationRecord) -> None:
    idle = [name for name in absent if name in record.unexcited]
    if idle:
        raise CalibrationError(
            f"{shown(idle[0])}: the table's scale is 0 (no image excited it). Calibrate on other "
            "images, or give --missing float to leave its layer in float."
        )
    first, rest = list(absent)[:_SHOWN], len(absent) - _SHOWN
    more = f" and {rest} more" if rest > 0 else ""
    raise CalibrationError(
        f"the calibration table lacks {len(absent)} tensors that are quantized: "
        f"{_with_near(first, record.tensors)}{more}. Give the table of this graph, or --missing "
        "float to leave their layers in float."
    )


def _with_near(wanted: Collection[str], known: Collection[str]) -> str:
    """Returns the names, each with the nearest known one."""
    parts = []
    for name in wanted:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        parts.append(f"{shown(name)} (nearest: {shown(near[0])})" if near else shown(name))
    return ", ".join(parts)


def _require_points(graph: onnx.GraphProto, placement: Placement) -> None:
    """Refuses a placement of nothing, and a graph in which a name is taken that a pair needs."""
    if not placement.activations:
        raise CalibrationError(
            "no layer's input is in the calibration table: nothing would be quantized. Give the "
            "table that was calibrated on this network."
        )
    taken = {tensor.name for tensor in graph.initializer} | set(FloatView(graph).tensors())
    points = [point.tensor for point in placement.activations]
    points += [point.initializer for point in placement.weights]
    for tensor in points:
        made = (names.scale, names.zero_point, names.quantized, names.dequantized)
        clash = next((name(tensor) for name in made if name(tensor) in taken), None)
        if clash is not None:
            raise ExportError(
                f"{shown(clash)}: the graph has a tensor of this name, which the Q/DQ pair of "
                f"{shown(tensor)} needs. Rename it in the ONNX file."
            )


def _require_rules(model: onnx.ModelProto, target: str) -> None:
    """Refuses a result that TensorRT would; the CPU follows other rules."""
    if target not in trt_rules.TARGETS:
        return
    for finding in trt_rules.check(model, target=target, profiles_given=True):
        if finding.severity == "error":
            raise ExportError(finding.message)
