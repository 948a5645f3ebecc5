"""What makes a plan small: `python benchmarks/plan_bytes_trials.py --out FILE.json`.

What makes TensorRT-RTX's w8a8 plan of mobilenet_v2 small, one knob at a time and together, and
what each costs in accuracy. The plan carries the source text of every kernel that the builder
generates, once per shape and per distinct scale. Ranges are the largest values on 16 photographs
(normal numbers where none stand beside the checkout), nothing is tuned. The build needs no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from repair_peers import SHAPE, TARGET, float_graph, inputs, logits, ranges

from fdda_deploy.engines.compare import compare_arrays
from fdda_deploy.engines.plan_bytes import attribute
from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_build import BuildOptions, build_plan
from fdda_deploy.exporters.float_onnx import FloatGraph
from fdda_deploy.exporters.placement import place
from fdda_deploy.exporters.qdq import Grids, insert_qdq
from fdda_deploy.quant.affine import qparams_from_amax, quantize
from fdda_deploy.quant.points import Placement
from fdda_deploy.quant.scheme import scheme_from_name

TEXT = re.compile(rb"[\x09\x0a\x0d\x20-\x7e]{20000,}")
"""A generated kernel's source."""
HEAD = 99
"""The block of the classifier, which has no number."""


@dataclass(frozen=True)
class Trial:
    """One setting of the knobs.

    Attributes:
        first: Blocks before this one stay in float.
        one_scale: One scale per weight tensor instead of one per channel.
        float_skip: The residual's skip input is not quantized.
        shared: Activations of one shape share the largest of their ranges.
        batch: A fixed batch; None is 1 to 64.
        sm: Compute capabilities; empty is a portable plan.
        opt_level: The builder's; None is its default.
    """

    first: int = 0
    one_scale: bool = False
    float_skip: bool = False
    shared: bool = False
    batch: int | None = None
    sm: tuple[int, ...] = ()
    opt_level: int | None = None


BEST = Trial(8, one_scale=True, float_skip=True, shared=True)
TRIALS = (
    Trial(),
    Trial(shared=True),
    Trial(one_scale=True),
    Trial(float_skip=True),
    Trial(one_scale=True, float_skip=True, shared=True),
    Trial(8),
    Trial(8, shared=True),
    Trial(8, float_skip=True, shared=True),
    Trial(8, one_scale=True),
    Trial(8, one_scale=True, float_skip=True),
    Trial(7, one_scale=True, float_skip=True, shared=True),
    BEST,
    Trial(11, one_scale=True, float_skip=True, shared=True),
    Trial(14, one_scale=True, float_skip=True, shared=True),
    dataclasses.replace(BEST, batch=8),
    dataclasses.replace(BEST, sm=(89,)),
    dataclasses.replace(BEST, opt_level=0),
    dataclasses.replace(BEST, opt_level=5),
)


def placement_of(graph: FloatGraph, trial: Trial) -> Placement:
    """Returns the placement of w8a8 on rtx with the knobs of ``trial``."""

    def placed(widths: dict[str, int | None]) -> Placement:
        return place(
            graph.proto,
            scheme_from_name("w8a8"),
            TARGET,
            torch_tensors=graph.fx_from_tensor,
            parameters=graph.parameter_from_initializer,
            widths=widths,
        )

    layers = {name for point in placed({}).weights for name in point.consumers}
    placement = placed({name: None for name in layers if block(name) < trial.first})
    if not trial.float_skip:
        return placement
    sums = {node.name for node in graph.proto.graph.node if node.op_type == "Add"}
    kept = []
    for point in placement.activations:
        edges = tuple(edge for edge in point.consumers if edge[0] not in sums)
        if edges:
            kept.append(dataclasses.replace(point, consumers=edges))
    return dataclasses.replace(placement, activations=tuple(kept))


def block(node: str) -> int:
    """Returns the number of the block that a node of mobilenet_v2 is in."""
    found = re.match(r"features\.(\d+)", node)
    return int(found[1]) if found else HEAD


def quantized(graph: FloatGraph, found: dict[str, float], trial: Trial) -> onnx.ModelProto:
    """Returns the Q/DQ graph of ``trial``."""
    placement = placement_of(graph, trial)
    held = {t.name: numpy_helper.to_array(t) for t in graph.proto.graph.initializer}
    weights = {}
    for point in placement.weights:
        weight = held[point.initializer]
        others = tuple(axis for axis in range(weight.ndim) if axis != point.axis)
        amax = np.abs(weight).max(axis=None if trial.one_scale else others)
        grid = qparams_from_amax(amax, 8, None if trial.one_scale else point.axis)
        weights[point.initializer] = (quantize(weight, grid), grid)
    amax_of = {point.tensor: found[point.tensor] for point in placement.activations}
    if trial.shared:
        shapes = shapes_of(graph.proto)
        groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for tensor in amax_of:
            groups[shapes.get(tensor, ())].append(tensor)
        for group in groups.values():
            largest = max(amax_of[tensor] for tensor in group)
            amax_of.update(dict.fromkeys(group, largest))
    grids = {tensor: qparams_from_amax(amax) for tensor, amax in amax_of.items()}
    model = insert_qdq(graph.proto, placement, Grids(grids, weights, {}), {})
    if trial.batch is not None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = trial.batch
    return model


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Returns the shape of one image's share of every tensor."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)[1:]
        for value in inferred.value_info
    }


def main() -> None:
    """Builds every trial, prints a line each, writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    api = load_api("tensorrt_rtx")
    graph, weights = float_graph("mobilenet_v2", random=False)
    found = ranges(graph.proto, list(np.array_split(inputs(16, 0), 4)))
    feed = inputs(8, 1)
    reference = logits(graph.proto, feed)
    floats = len(build_plan(graph.proto.SerializeToString(), BuildOptions(), api).plan)
    rows = []
    for trial in TRIALS:
        model = quantized(graph, found, trial)
        options = BuildOptions(compute_capabilities=trial.sm, optimization_level=trial.opt_level)
        data = model.SerializeToString()
        plan = build_plan(data, options, api).plan
        spent = attribute(plan, data)
        apart = compare_arrays("logits", reference, logits(model, feed))
        rows.append(
            {
                **dataclasses.asdict(trial),
                "plan_bytes": len(plan),
                "of_float": round(len(plan) / floats, 4),
                "weight_bytes": spent.weight_bytes,
                "generated_kernels": spent.generated_kernels,
                "sources": len(TEXT.findall(plan)),
                "source_bytes": sum(len(text) for text in TEXT.findall(plan)),
                "to_float_relative_l2": round(apart.relative_l2, 4),
                "to_float_top1": apart.top1_agreement,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "network": "mobilenet_v2",
        "weights": weights,
        "input": list(SHAPE),
        "builder": api.title,
        "float_plan_bytes": floats,
        "trials": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
