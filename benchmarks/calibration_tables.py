"""The road from an old calibration table to a Q/DQ graph, on real networks of another exporter.

The float file comes from torch's older exporter (opset 13, BatchNorm not folded, node names and
tensor names of its own). Its min-max table, over every tensor as TensorRT 10 would list them, is
written as TensorRT's text, read back, and applied. Printed: accuracy before and after on images
that calibrated nothing, the plan that TensorRT-RTX builds, seconds, and what the test for inverted
tables says. Usage: ``python benchmarks/calibration_tables.py [NETWORK ...]``.
"""

from __future__ import annotations

import io
import sys
import time
import warnings

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from real_networks import SHARED, _cifar
from torch import Tensor

from fdda_deploy.calib_cache.formats import read
from fdda_deploy.calib_cache.inversion import activation_scales, evidence
from fdda_deploy.calib_cache.trt_table import TrtTable, render
from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_build import BuildOptions, build_plan
from fdda_deploy.exporters.foreign_float import prepared
from fdda_deploy.exporters.known_ranges import known_bounds
from fdda_deploy.exporters.table_to_qdq import apply_table
from fdda_deploy.pipeline.data import open_images, read_classes
from fdda_deploy.pipeline.models import FloatModel, load_float_model

NUM_CALIB = {"cifar_resnet20": 256, "mobilenet_v2": 32}
NUM_VAL = {"cifar_resnet20": 1000, "mobilenet_v2": 100}
BATCH = 8


def main(names: list[str]) -> None:
    """Measures each network and prints a line per figure."""
    for name in names:
        model = _model(name)
        images = {part: _images(name, model, part) for part in ("calib", "val")}
        _measure(name, _old_file(model), images["calib"][0], *images["val"])


def _measure(name: str, old: onnx.ModelProto, calib: Tensor, val: Tensor, labels: Tensor) -> None:
    table = TrtTable("8601", "MinMaxCalibration", _scales(old, calib.numpy()))
    record = read(render(table).encode())[1]
    print(f"{name}: {len(table.scales)} tensors in the table, {len(old.graph.node)} nodes")
    scales = activation_scales(record)
    inverse = {tensor: 1 / scale for tensor, scale in scales.items()}
    bounds = known_bounds(prepared(old).graph)
    print(f"  inverted? sound: {evidence(scales)} / with the graph: {evidence(scales, bounds)}")
    print(f"  inverted? inverse: {evidence(inverse)} / with the graph: {evidence(inverse, bounds)}")
    print(f"  float top-1 {_top1(old, val, labels):.1f} % of {len(labels)} images")
    for target in ("trt", "rtx"):
        start = time.perf_counter()
        found = apply_table(record, old, target)
        seconds = time.perf_counter() - start
        plan = _plan_bytes(found.model) / _plan_bytes(prepared(old))
        print(
            f"  {target}: {len(found.taken)} activations, {len(found.placement.weights)} weights, "
            f"{len(found.placement.left_float)} layers in float, applied in {seconds:.2f} s, "
            f"RTX plan {plan:.3f}x float, top-1 {_top1(found.model, val, labels):.1f} %"
        )


def _model(name: str) -> FloatModel:
    own = name.startswith("cifar")
    return load_float_model(
        f"{SHARED / 'networks.py'}:{name}" if own else name,
        weights=str(SHARED / f"weights/{name}.pth"),
        input_size=(32, 32) if own else None,
    )


def _images(name: str, model: FloatModel, part: str) -> tuple[Tensor, Tensor]:
    limit = {"calib": NUM_CALIB, "val": NUM_VAL}[part][name]
    if name.startswith("cifar"):
        return _cifar(part, limit, 0)
    found = open_images(
        str(SHARED / f"images/imagenet_{part}.tar"),
        model.preprocessing,
        classes=read_classes(SHARED / "images/wnids.txt"),
        num_classes=1000,
        limit=limit,
    )
    return found.load(np.arange(len(found)))


def _old_file(model: FloatModel) -> onnx.ModelProto:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.module.eval(),
            (torch.zeros(1, *model.preprocessing.shape),),
            buffer,
            dynamo=False,
            opset_version=13,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
        )
    return onnx.load_from_string(buffer.getvalue())


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _scales(model: onnx.ModelProto, images: npt.NDArray[np.float32]) -> dict[str, np.float32]:
    """Returns amax / 127 of the input and of every float tensor that a node computes."""
    known = onnx.shape_inference.infer_shapes(model).graph
    watched = onnx.ModelProto.FromString(model.SerializeToString())
    outputs = {value.name for value in model.graph.output}
    floats = [v for v in known.value_info if v.type.tensor_type.elem_type == 1]
    watched.graph.output.extend(value for value in floats if value.name not in outputs)
    session = _session(watched)
    names = [value.name for value in session.get_outputs()]
    amax = {"input": np.abs(images).max()}
    for start in range(0, len(images), BATCH):
        for name, value in zip(
            names, session.run(None, {"input": images[start : start + BATCH]}), strict=True
        ):
            amax[name] = max(amax.get(name, np.float32(0)), np.abs(value).max(initial=0))
    return {name: np.float32(np.float64(value) / 127) for name, value in amax.items()}


def _top1(model: onnx.ModelProto, images: Tensor, labels: Tensor) -> float:
    session = _session(model)
    found = [session.run(["logits"], {"input": batch.numpy()})[0] for batch in images.split(BATCH)]
    return 100 * float((np.concatenate(found).argmax(1) == labels.numpy()).mean())


def _plan_bytes(model: onnx.ModelProto) -> int:
    api = load_api("tensorrt_rtx")
    return len(build_plan(model.SerializeToString(), BuildOptions(), api).plan)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:] or sorted(NUM_CALIB))
