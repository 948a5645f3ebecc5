"""Repairs a graph and proves it: the same inputs through both graphs, before anything is written.

The repairs are `exporters.repair`; the runs are ONNX Runtime's. The two never see each other, so
this file is where they meet.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from fdda_deploy.config.compact_plan import require_compact_repair
from fdda_deploy.engines.ort_run import OrtRunner
from fdda_deploy.engines.runner import Array, Feed
from fdda_deploy.errors import ConfigError, DataError, EngineError, ExportError
from fdda_deploy.exporters.repair.cut_off import CUT_OFF, measuring
from fdda_deploy.exporters.repair.record import Applied
from fdda_deploy.exporters.repair.repairing import NOTATION, repair
from fdda_deploy.exporters.rules.finding import Finding
from fdda_deploy.exporters.trt_rules import check
from fdda_deploy.pipeline.repair_proof import Proof, proved

PROOF_BATCH = 4
MAX_ELEMENTS = 2**28


@dataclass(frozen=True)
class Fix:
    """A graph that was repaired and proved.

    Attributes:
        model: The repaired graph.
        applied: Every change, in order.
        before: Findings on the graph as it came.
        after: Findings that are left.
        proof: None where nothing was changed.
        compact_plan: The repairs that make TensorRT-RTX's plan smaller were among those applied.
        not_compact: Why they were left out where they were only wanted if they can be had; or "".
    """

    model: onnx.ModelProto
    applied: tuple[Applied, ...]
    before: tuple[Finding, ...]
    after: tuple[Finding, ...]
    proof: Proof | None
    compact_plan: bool = False
    not_compact: str = ""


def fix(
    model: onnx.ModelProto,
    *,
    target: str,
    compute_capabilities: tuple[int, ...] = (),
    profiles_given: bool = False,
    flags: tuple[str, ...] = (),
    feed: Feed | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    compact_plan: bool | None = False,
) -> Fix:
    """Returns the repaired graph with the proof that its outputs stayed where they were.

    Args:
        model: Any ONNX model with its weights; left as it is.
        target: ``rtx``, ``trt11`` (also ``trt``) or ``trt10.16``.
        compute_capabilities: GPUs that the plan is for; empty if unknown.
        profiles_given: As for `exporters.trt_rules.check`.
        flags: As for `exporters.trt_rules.check`.
        feed: One array per input; None draws normal numbers of ``seed``.
        tolerance: Largest relative L2 distance of any output; None asks as `repair_proof` says.
        seed: Of the inputs that are drawn.
        compact_plan: Make TensorRT-RTX's plan smaller too; None does so for ``rtx`` if that can be
            proved, and else says why not.

    Raises:
        ConfigError: A tolerance that is not positive; a compact plan for another target.
        ExportError: The graph is not sound, or the proof failed.
        EngineError: ONNX Runtime cannot run the graph, or the feed does not fit it.
    """
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ConfigError(f"--tolerance {tolerance}: want a positive number.")

    def findings_of(graph: onnx.ModelProto) -> tuple[Finding, ...]:
        return check(
            graph,
            target=target,
            compute_capabilities=compute_capabilities,
            profiles_given=profiles_given,
            flags=flags,
        )

    require_compact_repair(compact_plan, target)
    before = findings_of(model)
    inputs = "the feed that was given"
    if feed is None:
        inputs = f"{PROOF_BATCH} rows of normal numbers, seed {seed}"

    def given() -> Feed:
        return seeded_feed(model, seed) if feed is None else feed

    def fixed(*, compact: bool) -> Fix:
        bounded = cut_off_tensors(model, target, given()) if compact else frozenset()
        repaired = repair(
            model,
            target=target,
            compute_capabilities=compute_capabilities,
            compact_plan=compact,
            bounded=bounded,
        )
        if not repaired.applied:
            return Fix(model, (), before, before, None, compact)
        proof = proved(model, repaired, target, given(), inputs, tolerance)
        after = findings_of(repaired.model)
        return Fix(repaired.model, repaired.applied, before, after, proof, compact)

    if compact_plan is not None or target != "rtx":
        return fixed(compact=bool(compact_plan))
    try:
        return fixed(compact=True)
    except (ExportError, EngineError) as error:
        return dataclasses.replace(fixed(compact=False), not_compact=str(error))


def cut_off_tensors(model: onnx.ModelProto, target: str, feed: Feed) -> frozenset[str]:
    """Returns the tensors that a symmetric grid cuts off below, as if a ReLU were hidden there.

    Args:
        model: Any Q/DQ graph.
        target: As for `fix`.
        feed: One array per input.

    Raises:
        EngineError: ONNX Runtime cannot run the graph, or the feed does not fit it.
    """
    readable = repair(model, target=target, only=NOTATION).model
    watched, about = measuring(readable)
    if not about:
        return frozenset()
    with OrtRunner(watched.SerializeToString(), optimizations="basic") as runner:
        found = runner.infer(feed)
    return frozenset(about[name] for name in about if float(found[name]) > CUT_OFF)


def seeded_feed(model: onnx.ModelProto, seed: int) -> dict[str, Array]:
    """Returns inputs that fit ``model``: normal numbers, 0 and 1 for integers, a batch of 4.

    Raises:
        ExportError: An input has an unknown size beyond its first axis, or no tensor type.
    """
    rng = np.random.default_rng(seed)
    held = {tensor.name for tensor in model.graph.initializer}
    feed = {}
    for value in model.graph.input:
        if value.name in held:
            continue
        shape = _shape(value)
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        except (KeyError, TypeError, ValueError):
            raise ExportError(
                f"input {value.name}: its element type has no NumPy twin, so no proof can be run. "
                "Export it with float inputs."
            ) from None
        drawn = rng.standard_normal(shape) if dtype.kind not in "iub" else rng.integers(0, 2, shape)
        feed[value.name] = np.asarray(drawn).astype(dtype)
    return feed


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    tensor = value.type.tensor_type
    sizes = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
    if not tensor.HasField("shape") or None in sizes[1:]:
        raise ExportError(
            f"input {value.name}: its size is unknown beyond the batch axis, so no input can be "
            "drawn. Give one with --feed FILE.npz."
        )
    shape = tuple(PROOF_BATCH if size is None else size for size in sizes)
    if math.prod(shape) > MAX_ELEMENTS:
        raise ExportError(
            f"input {value.name}: shape {'x'.join(map(str, shape))} is too large to draw. "
            "Give a smaller one with --feed FILE.npz."
        )
    return shape


def read_feed(path: Path) -> dict[str, Array]:
    """Returns the arrays of an ``.npz`` file by name; nothing in it is executed.

    Raises:
        DataError: The file is missing or holds anything but plain arrays.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}. Want an .npz file.") from None
    except Exception as error:  # noqa: BLE001 - zip, NumPy's header and codecs have their own
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: not an .npz file of plain arrays ({reason}). Write it with np.savez, one "
            "array per input."
        ) from None
