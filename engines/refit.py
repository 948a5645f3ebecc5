"""Puts weights into a stripped plan, from the ONNX file that it was built from; needs a GPU.

Not measured: no machine with a GPU that TensorRT or TensorRT-RTX supports was at hand.
"""

from __future__ import annotations

from typing import Any

from fdda_deploy.engines.gpu import gpu_compute_capability, gpu_present
from fdda_deploy.engines.onnx_gate import require_sound_onnx
from fdda_deploy.engines.plan_header import require_plan
from fdda_deploy.engines.trt_api import LogRecord, TrtApi, collect_log, errors_in
from fdda_deploy.errors import EngineError, MissingBackendError


def refit_plan(plan: bytes, model: bytes, api: TrtApi) -> bytes:
    """Returns the plan with the weights of ``model`` in it.

    Args:
        plan: Built with ``strip`` or ``refit``.
        model: The ONNX graph it was built from, or one that differs in its weights alone.
        api: The TensorRT that built it.

    Raises:
        MissingBackendError: There is no GPU; a plan is opened on one only.
        EngineError: The plan is not this TensorRT's, cannot be refitted, or a weight is missing.
        BuildError: ``model`` is no sound ONNX.
    """
    require_plan(plan, api, gpu_compute_capability())
    require_sound_onnx(model)
    if not gpu_present():
        raise MissingBackendError(
            f"putting weights into a plan of {api.title} needs an NVIDIA GPU, and none is visible. "
            "Build the whole plan instead: leave --strip out."
        )
    with collect_log(api) as (logger, records):
        return _refitted(plan, model, api, logger, records)


def _refitted(
    plan: bytes, model: bytes, api: TrtApi, logger: Any, records: list[LogRecord]
) -> bytes:
    module = api.module
    runtime = module.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{api.title} cannot open the plan: {_reason(records)}. Build it again.")
    refitter = module.Refitter(engine, logger)
    parser = module.OnnxParserRefitter(refitter, logger)
    taken = parser.refit_from_bytes(model) and refitter.refit_cuda_engine()
    missing = [str(name) for name in refitter.get_missing_weights()]
    written = b""
    if taken:
        config = engine.create_serialization_config()
        config.clear_flag(module.SerializationFlag.EXCLUDE_WEIGHTS)
        written = bytes(engine.serialize_with_config(config))
        del config
    del parser, refitter, engine, runtime  # each points into the next
    if not taken:
        lacks = f"weights {', '.join(missing[:3])} are missing" if missing else _reason(records)
        raise EngineError(
            f"{api.title} cannot refit the plan: {lacks}. "
            "Give the ONNX file that the plan was built from, and build it with --strip."
        )
    return written


def _reason(records: list[LogRecord]) -> str:
    return errors_in(records) or "no reason given"
