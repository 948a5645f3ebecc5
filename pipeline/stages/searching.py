"""Scale search inside the quantize stage: where the configuration asks for it."""

from __future__ import annotations

from torch import fx

from fdda_deploy.pipeline.progress import Progress
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.easyquant import NUM_IMAGES, search_scales
from fdda_deploy.pipeline.stages.context import RunContext
from fdda_deploy.pipeline.stages.images import Pool
from fdda_deploy.pipeline.workspace import Json


def searched_scales(
    context: RunContext,
    network: QuantNetwork,
    reference: fx.GraphModule,
    pool: Pool,
    progress: Progress,
) -> dict[str, Json] | None:
    """Searches all scales by the layers' outputs where asked to; kept if held-out images agree."""
    if context.config.quantize.scale_search == "none":
        return None
    found = search_scales(
        network,
        reference,
        pool.sample(NUM_IMAGES),
        pool.held_out(),
        device=context.device,
        seed=context.config.run.seed,
        progress=progress,
    )
    return {"kept": found.kept, "before": found.before, "after": found.after}
