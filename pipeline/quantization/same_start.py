"""The one network that several ranks fine-tune together."""

from __future__ import annotations

from fdda_deploy.pipeline.distributed import Ranks
from fdda_deploy.pipeline.quantization.convert import QuantNetwork
from fdda_deploy.pipeline.quantization.weight_reshaping import restore, snapshot


def start_alike(network: QuantNetwork, ranks: Ranks) -> None:
    """Gives every rank the weights and grids of rank 0: each came to its own, on its own device.

    Raises:
        RankError: Another rank stopped.
    """
    if ranks.alone:
        return
    values, grids = snapshot(network)
    steps = {name: quantizer.qparams for name, quantizer in network.activation_quantizers.items()}
    mine = {name: value.cpu() for name, value in values.items()}, grids
    saved, steps = ranks.told((mine, steps))
    restore(network, saved)
    for name, grid in steps.items():
        if grid is not None:
            network.activation_quantizers[name].set_qparams(grid)
