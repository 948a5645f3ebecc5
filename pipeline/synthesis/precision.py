"""Where bfloat16 pays in synthesis."""

from __future__ import annotations

import torch


def autocast_pays(device: torch.device) -> bool:
    """Returns True where bfloat16 products are faster than float32: CUDA, AMX, AVX-512 BF16."""
    if device.type == "cuda":
        return True
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
