"""The judge of the quantize stage: a step stays only if images that it has not seen agree."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.judge import Judge
from fdda_deploy.pipeline.quantization.weight_reshaping import restore, snapshot
from fdda_deploy.pipeline.stages.context import RunContext
from fdda_deploy.pipeline.workspace import Json

Change = Callable[[], dict[str, Json]]


def kept_if_better(
    context: RunContext, network: QuantNetwork, held_out: Tensor, change: Change
) -> dict[str, Json]:
    """Applies ``change`` to ``network``, and takes it back if held-out images disagree.

    Returns:
        ``kept``; KL(float || quantized) ``before`` and ``after`` in nats, None where it is no
        number; and what ``change`` returned.
    """
    teacher, device = context.float_graph.module.to(context.device), context.device
    judge = Judge(teacher, held_out, device)
    before, start = judge(network.to(device)), snapshot(network)
    steps = network.activation_qparams()
    found = change()
    after = judge(network)
    kept = after < before  # NaN compares false
    if not kept:
        restore(network, start)
        for name, qparams in steps.items():
            network.activation_quantizers[name].set_qparams(qparams)
    plain = {"before": before, "after": after if math.isfinite(after) else None}
    return {"kept": kept, **plain, **found}
