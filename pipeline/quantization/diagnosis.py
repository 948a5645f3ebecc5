"""Diagnosis: where accuracy goes, by layer and tensor, why, and which option helps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fdda_deploy.pipeline.quantization.causes import GOOD_PART, Cause, causes_of
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.layer_facts import LayerFacts, layer_facts
from fdda_deploy.pipeline.quantization.layers import LayerError, decibel

MOST_FINDINGS = 8
"""More than a reader acts on; the layers' own table has every layer."""
SOUND_DB = 20.0
"""A layer whose noise is at most 1 % of its signal's power is not asked why."""


@dataclass(frozen=True)
class Finding:
    """One layer that makes much of the noise, and a likely cause.

    Attributes:
        node: ONNX node.
        tensor: ONNX tensor or initializer that has the fault.
        cause: A few words, for instance ``range outliers``.
        evidence: The measured numbers, in words.
        option: What helps, named as on the command line.
        output_sqnr_db: Of the layer, everything before it quantized too.
        input_sqnr_db: Of what arrives at it, before its own quantizer.
    """

    node: str
    tensor: str
    cause: str
    evidence: str
    option: str
    output_sqnr_db: float
    input_sqnr_db: float


def diagnose(
    network: QuantNetwork,
    float_module: fx.GraphModule,
    images: Tensor,
    errors: list[LayerError],
    *,
    device: torch.device,
    batch_size: int = 8,
    effort: str | None,
) -> list[Finding]:
    """Returns at most ``MOST_FINDINGS`` findings on the layers where most noise enters.

    Args:
        network: Calibrated, rounded and trained as it will be exported.
        float_module: The float graph that ``network`` was converted from.
        images: ``(N, C, H, W)`` float32, preprocessed; those of ``errors``.
        errors: Of ``layers.layer_errors``.
        device: Where to run.
        batch_size: Images at a time.
        effort: As the network was rounded, see ``causes_of``: advice goes beyond it.

    Raises:
        CalibrationError: No image, or an activation without a range.
    """
    sqnr = {error.node: error.output_sqnr_db for error in errors}
    if not any(value < SOUND_DB for value in sqnr.values()):
        return []
    facts = layer_facts(network, float_module, images, device=device, batch_size=batch_size)
    return [
        _finding(layer, cause, sqnr[layer.node])
        for layer, cause in select(worst_layers(facts, sqnr), effort)
    ]


def worst_layers(facts: list[LayerFacts], sqnr_db: dict[str, float]) -> list[LayerFacts]:
    """Returns the layers to explain, those where most noise enters first.

    What enters is what the layer's own grids do to the float network's numbers. The difference
    between output and input would not do: a layer averages the noise that arrives. Layers that
    make less than a good part of their noise are left out, but for the noisiest of all: it is the
    one that a reader sees first.

    Args:
        facts: Of every layer.
        sqnr_db: Output SQNR by node; a layer that is missing here is left out.
    """
    noisy = [layer for layer in facts if sqnr_db.get(layer.node, SOUND_DB) < SOUND_DB]
    if not noisy:
        return []
    noisiest = min(noisy, key=lambda layer: sqnr_db[layer.node])
    kept = [layer for layer in noisy if layer.own >= GOOD_PART * layer.noise or layer is noisiest]
    return sorted(kept, key=lambda layer: -layer.own)


def select(layers: list[LayerFacts], effort: str | None) -> list[tuple[LayerFacts, Cause]]:
    """Returns at most ``MOST_FINDINGS`` causes by layer: every first one before any second one."""
    found = [
        (nth, place, layer, cause)
        for place, layer in enumerate(layers)
        for nth, cause in enumerate(causes_of(layer, effort))
    ]
    found = sorted(found, key=lambda each: each[:2])[:MOST_FINDINGS]
    by_layer = sorted(found, key=lambda each: (each[1], each[0]))
    return [(layer, cause) for _, _, layer, cause in by_layer]


def _finding(layer: LayerFacts, cause: Cause, sqnr_db: float) -> Finding:
    return Finding(
        node=layer.node,
        tensor=cause.tensor,
        cause=cause.name,
        evidence=cause.evidence,
        option=cause.option,
        output_sqnr_db=sqnr_db,
        input_sqnr_db=decibel(1.0, layer.arrived),
    )
