"""A model repository for Triton Inference Server: which backend loads what, as config.pbtxt.

Triton's TensorRT backend deserialises plans of full TensorRT. It does not load TensorRT-RTX plans,
so such a package gives Triton the Q/DQ graph instead: ONNX Runtime runs it with TensorRT as
execution accelerator, which builds its own engine when the model loads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fdda_deploy.errors import ConfigError

Loads = Literal["plan", "graph"]
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
QUEUE_DELAY_US = 100
"""Longest wait for a fuller batch: a small share of any network's latency. Tune it under load."""
DTYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "float64": "TYPE_FP64",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "bool": "TYPE_BOOL",
}
FILES: Mapping[Loads, str] = {"plan": "model.plan", "graph": "model.onnx"}
"""What Triton looks for in a version folder, by platform."""
PLATFORMS: Mapping[Loads, str] = {"plan": "tensorrt_plan", "graph": "onnxruntime_onnx"}
LABELS = "labels.txt"


@dataclass(frozen=True)
class TritonModel:
    """What Triton is told about one network.

    Attributes:
        name: Also its folder; letters, digits, ``_``, ``.`` and ``-``.
        loads: ``plan`` for full TensorRT, ``graph`` for ONNX Runtime.
        inputs: name, dtype and shape of each; axis 0 is the batch, None where dynamic.
        outputs: The same.
        batch: Smallest, usual and largest batch.
        on_gpu: Instances live on GPUs, and TensorRT accelerates a graph.
        has_labels: A labels.txt lies beside the configuration.

    Raises:
        ConfigError: A name that Triton would not take as a folder.
    """

    name: str
    loads: Loads
    inputs: tuple[Mapping[str, Any], ...]
    outputs: tuple[Mapping[str, Any], ...]
    batch: tuple[int, int, int]
    on_gpu: bool
    has_labels: bool

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"--triton-name {self.name[:60]!r}: want up to 100 letters, digits, '_', '.' or "
                "'-', and no '.' or '-' first."
            )


def triton_name(model: str) -> str:
    """Returns a model's name as Triton's folder name.

    Example:
        >>> triton_name("nets/mine.py:small"), triton_name("../..")
        ('mine.py_small', 'model')
    """
    last = re.split(r"[/\\]", model)[-1]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", last).strip("._-")[:100] or "model"


def config_pbtxt(model: TritonModel) -> str:
    """Returns config.pbtxt, protobuf text of Triton's ModelConfig."""
    batched = all(tensor["shape"][0] is None for tensor in (*model.inputs, *model.outputs))
    least, usual, most = model.batch
    lines = [
        *_comment(model),
        f"name: {quoted(model.name)}",
        f"platform: {quoted(PLATFORMS[model.loads])}",
        f"max_batch_size: {most if batched else 0}",
    ]
    for tensor in model.inputs:
        lines += _tensor("input", tensor, batched=batched)
    for index, tensor in enumerate(model.outputs):
        labelled = model.has_labels and index == 0
        lines += _tensor("output", tensor, batched=batched, labelled=labelled)
    kind = "KIND_GPU" if model.on_gpu else "KIND_CPU"
    lines.append(f"instance_group [ {{ count: 1 kind: {kind} }} ]")
    if batched and most > 1:
        preferred = ", ".join(str(size) for size in sorted({usual, most} - {1}))
        lines += [
            "dynamic_batching {",
            f"  preferred_batch_size: [ {preferred} ]",
            f"  max_queue_delay_microseconds: {QUEUE_DELAY_US}",
            "}",
        ]
    if model.loads == "graph" and model.on_gpu:
        lines += _accelerator(model, (least, usual, most) if batched else None)
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    r"""Returns ``text`` as a protobuf text string: ASCII alone, everything else as octal bytes.

    Example:
        >>> print(quoted('a"b\n'))
        "a\"b\012"
    """
    parts = []
    for byte in text.encode("utf-8", errors="replace"):
        plain = 32 <= byte < 127 and byte not in b'"\\'
        escaped = f"\\{chr(byte)}" if byte in b'"\\' else f"\\{byte:03o}"
        parts.append(chr(byte) if plain else escaped)
    return f'"{"".join(parts)}"'


def _comment(model: TritonModel) -> list[str]:
    if model.loads == "plan":
        return ["# A plan fits one TensorRT release: take the Triton container that carries it."]
    if not model.on_gpu:
        return ["# Exported for ONNX Runtime on the CPU."]
    return [
        "# Triton's tensorrt backend does not load TensorRT-RTX plans: ONNX Runtime runs the",
        "# graph, with TensorRT as accelerator, which builds its engine when the model loads.",
        "# Without a GPU: set KIND_CPU and take the optimization block out.",
    ]


def _tensor(
    kind: str, tensor: Mapping[str, Any], *, batched: bool, labelled: bool = False
) -> list[str]:
    shape = tensor["shape"][1:] if batched else tensor["shape"]
    dims = ", ".join("-1" if size is None else str(size) for size in shape)
    lines = [
        f"{kind} [",
        "  {",
        f"    name: {quoted(tensor['name'])}",
        f"    data_type: {DTYPES[tensor['dtype']]}",
        f"    dims: [ {dims} ]",
    ]
    if labelled:
        lines.append(f"    label_filename: {quoted(LABELS)}")
    return [*lines, "  }", "]"]


def _accelerator(model: TritonModel, batches: tuple[int, int, int] | None) -> list[str]:
    """Returns TensorRT as ONNX Runtime's accelerator: INT8 by the Q/DQ nodes, shapes told ahead."""
    parameters = {"precision_mode": "INT8"}
    if batches is not None:
        for which, size in zip(("min", "opt", "max"), batches, strict=True):
            shapes = (
                f"{tensor['name']}:{'x'.join(map(str, (size, *tensor['shape'][1:])))}"
                for tensor in model.inputs
            )
            parameters[f"trt_profile_{which}_shapes"] = ",".join(shapes)
    lines = ["optimization {", "  execution_accelerators {", "    gpu_execution_accelerator ["]
    lines += ["      {", '        name: "tensorrt"']
    for key, value in parameters.items():
        lines.append(f"        parameters {{ key: {quoted(key)} value: {quoted(value)} }}")
    return [*lines, "      }", "    ]", "  }", "}"]
