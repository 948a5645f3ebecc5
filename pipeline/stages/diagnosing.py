"""Diagnosis inside the quantize stage: which layers are noisy, why, and which option helps."""

from __future__ import annotations

from dataclasses import asdict

from torch import Tensor, fx

from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.diagnosis import diagnose
from fdda_deploy.pipeline.quantization.layers import LayerError
from fdda_deploy.pipeline.stages.context import RunContext
from fdda_deploy.pipeline.stages.rounding import effort_of
from fdda_deploy.pipeline.workspace import Json


def diagnosed(
    context: RunContext,
    network: QuantNetwork,
    reference: fx.GraphModule,
    images: Tensor,
    errors: list[LayerError],
) -> list[Json]:
    """Returns the findings as plain data, the layer where most noise enters first."""
    found = diagnose(
        network,
        reference,
        images,
        errors,
        device=context.device,
        effort=effort_of(context) if context.config.quantize.numbers == "integer" else None,
    )
    return [asdict(finding) for finding in found]
