"""From a build's report to a package's manifest: every field, and where it comes from."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fdda_deploy import __version__
from fdda_deploy.engines.build_options import BuildOptions
from fdda_deploy.engines.build_result import GRAPH, PLAN, BuildFiles
from fdda_deploy.engines.deploy_manifest import KIND, MANIFEST_SCHEMA, NOT_MEASURED
from fdda_deploy.engines.preflight import RTX_DEFAULT_GPUS, STRIPPED, VERSION_COMPATIBLE
from fdda_deploy.errors import ConfigError, EngineError

FOLDERS = re.compile(r"(?:\b[A-Za-z]:)?[^\s:,;()]*[/\\](?=[^/\\\s])")
INTERVAL = "95 %, Wilson for accuracies"
ONNX_DTYPES = {
    np.dtype(name): name
    for name in ("float32", "float16", "float64", "int8", "uint8", "int32", "int64", "bool")
}


def without_folders(text: str) -> str:
    """Returns ``text`` without the folders of the paths in it: they are the building machine's.

    Example:
        >>> without_folders("/home/me/nets.py:tiny, weights w/tiny.pth")
        'nets.py:tiny, weights tiny.pth'
    """
    return FOLDERS.sub("", text)


def described_graph(data: bytes) -> tuple[dict[str, int], list[Any], list[Any]]:
    """Returns opset and IR version, inputs and outputs (name, dtype, shape) of an ONNX graph.

    Raises:
        EngineError: It is no such graph, has more inputs than one, or an unknown element type.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # none shipped

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise EngineError(f"{GRAPH}: no ONNX file ({error}). Export it again.") from None
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [_tensor(value) for value in model.graph.input if value.name not in constants]
    outputs = [_tensor(value) for value in model.graph.output]
    if len(inputs) != 1:
        raise EngineError(f"{GRAPH}: {len(inputs)} inputs, a package takes networks with one.")
    opset = next((int(o.version) for o in model.opset_import if o.domain in {"", "ai.onnx"}), 1)
    return {"opset": opset, "ir_version": int(model.ir_version)}, inputs, outputs


def _tensor(value: Any) -> dict[str, Any]:
    import onnx

    kind = value.type.tensor_type
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    except KeyError:
        dtype = f"of the unknown element type {kind.elem_type}"
    if dtype not in ONNX_DTYPES:
        raise EngineError(f"{GRAPH}: {value.name!r} is {dtype}; want one of {_names()}.")
    shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    return {"name": value.name, "dtype": ONNX_DTYPES[dtype], "shape": shape}


def _names() -> str:
    return ", ".join(ONNX_DTYPES.values())


def batches(
    build: BuildFiles, inputs: Sequence[Mapping[str, Any]], *, max_batch: int | None, planned: bool
) -> dict[str, int]:
    """Returns smallest, usual and largest batch.

    Args:
        build: The build; its report holds the plan's range.
        inputs: Of the graph; a fixed batch is all three.
        max_batch: The user's wish; None takes the plan's.
        planned: The package holds the plan, whose range binds.

    Raises:
        ConfigError: A wish outside the range.
    """
    fixed = inputs[0]["shape"][0]
    usually = BuildOptions()
    built = build.report["deploy"]["batches"]  # None where there is no plan: then any will do
    built = built or [usually.min_batch, usually.opt_batch, usually.max_batch]
    least, usual, most = [fixed] * 3 if fixed else built
    wanted = most if max_batch is None else max_batch
    highest = most if planned or fixed else wanted
    if not least <= wanted <= highest:
        raise ConfigError(
            f"--max-batch {wanted}: the {'graph' if fixed else 'plan'} takes {least} to {most}. "
            "Choose one of these, or build the plan again with a wider range."
        )
    return {"min": least, "opt": min(usual, wanted), "max": wanted}


def package_manifest(
    build: BuildFiles,
    *,
    graph: Mapping[str, int] | None,
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    batch: Mapping[str, int],
    with_plan: bool,
) -> dict[str, Any]:
    """Returns the manifest but for probe, triton and files, which are known once written."""
    report = build.report
    model, bench = report["model"], report["bench"]
    names = report["deploy"]["class_names"]
    return {
        "kind": KIND,
        "schema": MANIFEST_SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "tool_version": __version__,
        "model": {
            "name": without_folders(model["name"]),
            "digest": model["digest"],
            "parameters": model["parameters"],
            "classes": model["classes"],
            "scheme": report["scheme"],
            "runs_as": report["runs_as"],
        },
        "inputs": list(inputs),
        "outputs": list(outputs),
        "batch": dict(batch),
        "preprocessing": _preprocessing(report["deploy"]["preprocessing"]),
        "labels": None if names is None else [" ".join(str(name).split()) for name in names],
        "graph": None if graph is None else {"file": GRAPH, **graph},
        "plan": _plan(report) if with_plan else None,
        "accuracy": _accuracy(report),
        "latency": {key: bench.get(key) or NOT_MEASURED for key in ("gpu", "cpu")},
        "calibration": _calibration(report),
        "probe": None,
        "triton": None,
        "files": {},
    }


def _preprocessing(given: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("channels", "height", "width", "resize", "interpolation", "mean", "std")
    return {key: given[key] for key in keys} | {
        "crop": "none" if given["resize"] is None else "center",
        "channel_order": "RGB" if given["channels"] == 3 else "grey",
        "layout": "NCHW",
        "pixel_range": [0, 1],
    }


def _plan(report: Mapping[str, Any]) -> dict[str, Any]:
    engine, deploy = report["engine"], report["deploy"]
    flavour, numbers = engine["backend"], list(engine["compute_capabilities"] or ())
    portable = flavour == "tensorrt_rtx" and not numbers
    if portable:
        numbers = list(RTX_DEFAULT_GPUS)
    elif not numbers and deploy["compute_capability"] is not None:
        numbers = [deploy["compute_capability"]]  # TensorRT built for the GPU it ran on
    return {
        "file": PLAN,
        "flavour": flavour,
        "version": engine["version"],
        "compute_capabilities": numbers,
        "portable": portable,
        "built_for": None if portable else deploy["gpu"],
        "flags": _flags(report["config"]["engine"]),
        "platform": deploy["platform"],
    }


def _flags(engine: Mapping[str, Any]) -> list[str]:
    """Returns what the build was asked for that widens or narrows where its plan loads."""
    flags = engine.get("flags")
    found = [str(flag) for flag in flags] if isinstance(flags, list) else []
    if engine.get("version_compatible"):
        found.append(VERSION_COMPATIBLE)
    if engine.get("hardware_compatible"):
        found.append(str(engine["hardware_compatible"]).upper().replace("-", "_"))
    if engine.get("strip"):
        found.append(STRIPPED)
    return list(dict.fromkeys(found))


def _accuracy(report: Mapping[str, Any]) -> dict[str, Any] | str:
    accuracy, evaluation = report["accuracy"], report["data"]["evaluation"]
    if accuracy is None:
        return NOT_MEASURED
    keys = ("top1", "top5", "n", "low", "high", "runs_on")
    on = None
    if evaluation is not None:
        on = {**evaluation, "origin": without_folders(str(evaluation.get("origin")))}
    return {
        **{part: {k: accuracy[part].get(k) for k in keys} for part in ("float", "quantized")},
        "drop": accuracy["drop"],
        "agreement": accuracy.get("agreement"),
        "interval": INTERVAL,
        "evaluated_on": on,
    }


def _calibration(report: Mapping[str, Any]) -> dict[str, Any]:
    counts, quantize = report["data"]["calibrated_on"] or {}, report["config"]["quantize"]
    given = report["data"].get("calibration") or {}
    recipes = (report["recipe"], given.get("recipe"))  # made by this build; read back by it
    return {
        "real": counts.get("real", 0),
        "synthetic": counts.get("synthetic", 0),
        "recipe": next((name for name in recipes if name not in {None, "none"}), "none"),
        "observer": quantize.get("observer"),
        "effort": report["rounding"].get("effort"),
        "scale_search": quantize.get("scale_search"),
    }
