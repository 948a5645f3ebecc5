"""The texts of a package that name its network: README.md and build_on_target.sh, safely quoted."""

from __future__ import annotations

import re
import shlex
import string
from collections.abc import Mapping
from typing import Any

from fdda_deploy.engines.deploy_manifest import NOT_MEASURED, TEMPLATES, Manifest
from fdda_deploy.engines.trt_api import TITLES

MARKUP = re.compile(r"([\\`*_\[\]|#~$])")
SHAPES = ("min", "opt", "max")


class _Text(string.Template):
    delimiter = "@"  # the texts are full of dollar signs of the shell's


def readme(manifest: Manifest) -> str:
    """Returns README.md: what the package is, how to run it, what it was measured at."""
    return _filled(
        "README.md",
        {
            "name": markdown(manifest["model"]["name"]),
            "scheme": markdown(manifest["model"]["scheme"]),
            "runs_as": markdown(manifest["model"]["runs_as"]),
            "tool_version": markdown(manifest["tool_version"]),
            "contents": "\n".join(_contents(manifest)),
            "shape": " x ".join(str(size) for size in manifest["inputs"][0]["shape"][1:]),
            "batches": f"{manifest['batch']['min']} to {manifest['batch']['max']}",
            "preprocessing": _preprocessing(manifest["preprocessing"]),
            "measured": "\n".join(_measured(manifest)),
            "calibration": _calibration(manifest["calibration"]),
        },
    )


def build_script(manifest: Manifest) -> str:
    """Returns build_on_target.sh: the trtexec line with this package's profile shapes."""
    shapes = []
    for which in SHAPES:
        parts = [
            f"{_trtexec_name(tensor['name'])}:"
            + "x".join(str(size) for size in (manifest["batch"][which], *tensor["shape"][1:]))
            for tensor in manifest["inputs"]
            if tensor["shape"][0] is None
        ]
        if parts:
            shapes.append(shlex.quote(f"--{which}Shapes={','.join(parts)}"))
    graph = shlex.quote(f"--onnx={manifest['graph']['file']}")
    return _filled("build_on_target.sh", {"graph": graph, "shapes": " ".join(shapes)})


def markdown(text: str) -> str:
    r"""Returns ``text`` as one line that Markdown and HTML show as it stands.

    Example:
        >>> markdown("a_b <script>\nx")
        'a\\_b &lt;script&gt; x'
    """
    line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", text).split())
    html = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return MARKUP.sub(r"\\\1", html)


def _filled(name: str, values: Mapping[str, str]) -> str:
    return _Text((TEMPLATES / name).read_text(encoding="utf-8")).substitute(values)


def _trtexec_name(name: str) -> str:
    """Returns an input's name as trtexec takes it: in quotes where a colon or comma is in it."""
    return f"'{name}'" if re.search(r"[:,']", name) else name


def _contents(manifest: Manifest) -> list[str]:
    rows = []
    plan, graph, triton = manifest["plan"], manifest["graph"], manifest["triton"]
    if plan is not None:
        gpus = ", ".join(f"{n // 10}.{n % 10}" for n in plan["compute_capabilities"]) or "unknown"
        title = f"{TITLES[plan['flavour']]} {plan['version']}"
        rows.append(f"- `{plan['file']}`: the plan. Needs {title}; compute capability {gpus}.")
    if graph is not None:
        rows.append(
            f"- `{graph['file']}`: the quantized graph (opset {graph['opset']}). ONNX Runtime runs "
            "it, and `build_on_target.py` or `.sh` makes a plan of it on the machine at hand."
        )
    if triton is not None:
        what = "the plan" if triton["loads"] == "plan" else "the ONNX graph"
        rows.append(f"- `triton/`: a model repository for Triton; it loads {what}.")
    elif plan is not None:
        rows.append("- No `triton/`: Triton's backends do not load TensorRT-RTX plans.")
    return rows


def _preprocessing(pre: Mapping[str, Any]) -> str:
    geometry = (
        f"squeezed to {pre['height']}x{pre['width']}"
        if pre["resize"] is None
        else f"shorter side {pre['resize']}, centre crop {pre['height']}x{pre['width']}"
    )
    mean, std = (", ".join(f"{value:g}" for value in pre[key]) for key in ("mean", "std"))
    return (
        f"{pre['channel_order']}, {geometry} ({pre['interpolation']}), pixels / 255, "
        f"minus ({mean}), divided by ({std}), {pre['layout']}"
    )


def _measured(manifest: Manifest) -> list[str]:
    accuracy, latency = manifest["accuracy"], manifest["latency"]
    rows = [f"- Accuracy: {NOT_MEASURED}."]
    if accuracy != NOT_MEASURED:
        rows = [
            f"- {title}: top-1 {part['top1']:.2f} % of {part['n']:,} images"
            f"{_interval(part)}, on {markdown(part['runs_on'])}."
            for title, part in (
                ("Float network", accuracy["float"]),
                ("This network", accuracy["quantized"]),
            )
        ]
    gpu = latency["gpu"]
    timing = None if gpu == NOT_MEASURED else gpu.get("latency_ms")
    median = timing.get("median") if isinstance(timing, dict) else None
    shown = NOT_MEASURED
    if isinstance(median, float):
        shown = f"median {median:.3f} ms, {markdown(str(gpu.get('what')))}"
    return [*rows, f"- GPU latency: {shown}."]


def _interval(part: Mapping[str, Any]) -> str:
    if part["low"] is None or part["high"] is None:
        return ""
    return f" (95 % interval {part['low']:.2f} to {part['high']:.2f})"


def _calibration(origin: Mapping[str, Any]) -> str:
    return (
        f"{origin['real']} real and {origin['synthetic']} synthetic images, recipe "
        f"{markdown(origin['recipe'])}, observer {markdown(str(origin['observer']))}, effort "
        f"{markdown(str(origin['effort']))}"
    )
