"""Grids on disk: integers and scales of one quantized network, written by quantize, read by all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save

from fdda_deploy import __version__
from fdda_deploy.calib_cache.record import CalibrationRecord, TensorCalibration
from fdda_deploy.calib_cache.store import load_record, save_record
from fdda_deploy.exporters.qdq import Grids
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.quant.affine import dequantize

RECORD = "calibration.json"
TENSORS = "weights.safetensors"


def save_grids(
    folder: Path, network: QuantNetwork, *, model_digest: str, data_digest: str, observer: str
) -> None:
    """Writes the calibration record and the integers of ``network`` into ``folder``."""
    integers = network.integer_weights()
    tensors: dict[str, TensorCalibration] = {}
    for name, qparams in network.activation_qparams().items():
        amax = float(max(abs(float(qparams.low)), abs(float(qparams.high))))
        tensors[name] = TensorCalibration(qparams, amax, observer, "activation")
    for name, (_, qparams) in integers.items():
        amaxes = np.abs(qparams.high).reshape(-1).tolist()
        amax_of = amaxes[0] if qparams.axis is None else tuple(amaxes)
        tensors[name] = TensorCalibration(qparams, amax_of, "lp", "weight")
    record = CalibrationRecord(
        tensors=tensors,
        model_digest=model_digest,
        data_digest=data_digest,
        scheme=network.placement.scheme,
        target=network.placement.target,
        algorithm=observer,
        tool_version=__version__,
    )
    save_record(folder / RECORD, record)
    arrays = {f"integers/{name}": np.ascontiguousarray(x) for name, (x, _) in integers.items()}
    arrays |= {
        f"parameters/{name}": np.ascontiguousarray(x)
        for name, x in network.float_parameters().items()
    }
    (folder / TENSORS).write_bytes(save(arrays))  # a full disk is then an OSError


def load_grids(folder: Path) -> tuple[Grids, CalibrationRecord]:
    """Returns what `save_grids` wrote."""
    record = load_record(folder / RECORD)
    arrays = load_file(folder / TENSORS)
    activations = {n: t.qparams for n, t in record.tensors.items() if t.role == "activation"}
    weights = {
        name: (arrays[f"integers/{name}"], tensor.qparams)
        for name, tensor in record.tensors.items()
        if tensor.role == "weight"
    }
    prefix = "parameters/"
    parameters = {n.removeprefix(prefix): x for n, x in arrays.items() if n.startswith(prefix)}
    return Grids(activations, weights, parameters), record


def apply_grids(network: QuantNetwork, grids: Grids) -> None:
    """Puts stored grids, integers and float parameters into a freshly converted network."""
    for name, qparams in grids.activations.items():
        network.activation_quantizers[name].set_qparams(qparams)
    with torch.no_grad():
        for initializer, value in grids.parameters.items():
            name, transposed = network.names.parameter_from_initializer.get(
                initializer, (initializer, False)
            )
            parameter = network.graph_module.get_parameter(name)
            parameter.copy_(torch.from_numpy(value.T if transposed else value))
        for point in network.placement.weights:
            x_int, qparams = grids.weights[point.initializer]
            network.set_weight_qparams(point, qparams)
            _, transposed = network.names.parameter_from_initializer[point.initializer]
            x_deq = dequantize(x_int, qparams)
            network.weight(point).copy_(torch.from_numpy(x_deq.T if transposed else x_deq))
