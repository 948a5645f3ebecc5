"""The table of `fdda-deploy sensitivity`: layers in falling order of the damage that each does."""

from __future__ import annotations

from typing import Any

HEAD = (("rank", "layer", "bits W/A", "KL [nats]", "SQNR [dB]", "bytes", "KL at 8 bits [nats]"),)


def ranking_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns the head and one row per layer, the most damaging first.

    Args:
        found: The content of sensitivity.json: ``narrow`` has each layer at the scheme's width,
            ``wide`` at 8 bits, both in graph order. Bytes are those of the grid.
    """
    pairs = sorted(
        zip(found["narrow"], found["wide"], strict=True), key=lambda pair: -pair[0]["kl"]
    )
    rows = [
        (
            str(rank),
            layer["nodes"][0],
            f"{layer['weight_bits']}/{layer['act_bits'] or 'float'}",
            f"{layer['kl']:.3g}",
            f"{layer['sqnr_db']:.1f}",
            f"{layer['grid_bytes']:,}",
            f"{wide['kl']:.3g}",
        )
        for rank, (layer, wide) in enumerate(pairs, start=1)
    ]
    return [*HEAD, *rows]
