"""Builds a plan from this package's ONNX graph, on the machine that will run it.

    python build_on_target.py                      # TensorRT where it is, else TensorRT-RTX
    python build_on_target.py --max-batch 16

Needs TensorRT or TensorRT-RTX alone. The plan goes to local/engine.plan, where infer.py finds it.
TensorRT needs the GPU for this; TensorRT-RTX does not. build_on_target.sh does the same with
trtexec.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MODULES = {
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx_libs", "tensorrt_rtx_bindings"),
}


class TargetError(Exception):
    """What the user can act on, in one line."""


def load(flavours: Sequence[str]) -> tuple[str, Any]:
    """Returns the first TensorRT that imports, by name and module."""
    reasons = []
    for flavour in flavours:
        try:
            return flavour, [importlib.import_module(name) for name in MODULES[flavour]][-1]
        except (ImportError, OSError) as error:
            reasons.append(f"{flavour}: {error}")
    raise TargetError(f"no TensorRT imports here ({'; '.join(reasons)})")


def build(trt: Any, graph: bytes, shapes: Mapping[str, Sequence[tuple[int, ...]]]) -> bytes:
    """Returns the plan.

    Args:
        trt: The Python bindings.
        graph: The ONNX file.
        shapes: Smallest, usual and largest shape of each input.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:
        raise TargetError(f"the builder does not start ({error}); see nvidia-smi") from None
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        reason = parser.get_error(0).desc() if parser.num_errors else "no reason given"
        raise TargetError(f"this TensorRT refuses the graph: {reason}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, (least, usual, most) in shapes.items():
        profile.set_shape(name, least, usual, most)
    config.add_optimization_profile(profile)
    memory = builder.build_serialized_network(network, config)
    plan: bytes | None = None if memory is None else bytes(memory)
    del memory, parser, config, network, builder  # each points into those behind it
    if plan is None:
        raise TargetError("this TensorRT cannot build the graph; its reason stands above")
    return plan


def graph_of(manifest: Mapping[str, Any]) -> bytes:
    """Returns the package's ONNX file."""
    if manifest["graph"] is None:
        raise TargetError("this package has no ONNX graph: make it again without --no-onnx")
    path: Path = HERE / manifest["graph"]["file"]
    return path.read_bytes()


def profile_shapes(
    manifest: Mapping[str, Any], largest: int | None
) -> dict[str, list[tuple[int, ...]]]:
    """Returns smallest, usual and largest shape of each input whose batch is dynamic."""
    batch = manifest["batch"]
    most = batch["max"] if largest is None else largest
    if most < batch["min"]:
        raise TargetError(f"--max-batch {most}: want {batch['min']} or more")
    sizes = (batch["min"], min(batch["opt"], most), most)
    return {
        tensor["name"]: [(size, *tensor["shape"][1:]) for size in sizes]
        for tensor in manifest["inputs"]
        if tensor["shape"][0] is None
    }


def write_whole(path: Path, data: bytes) -> None:
    """Writes ``data`` so that ``path`` holds all of it or what it held before."""
    path.parent.mkdir(exist_ok=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temp.write_bytes(data)
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds and writes the plan; returns the exit code."""
    parser = argparse.ArgumentParser(description="Build this package's plan on this machine.")
    parser.add_argument("--flavour", choices=("auto", *MODULES), default="auto")
    parser.add_argument("--max-batch", type=int, help="default: the package's")
    options = parser.parse_args(arguments)
    try:
        manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
        graph = graph_of(manifest)
        wanted = list(MODULES) if options.flavour == "auto" else [options.flavour]
        shapes = profile_shapes(manifest, options.max_batch)
        flavour, trt = load(wanted)
        plan = build(trt, graph, shapes)
        record = {"flavour": flavour, "version": trt.__version__, "bytes": len(plan)}
        write_whole(HERE / "local" / "engine.plan", plan)
        write_whole(HERE / "local" / "engine.json", json.dumps(record).encode())
    except (TargetError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    sys.stdout.write(f"local/engine.plan: {len(plan):,} bytes, {flavour} {trt.__version__}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
