"""Where a compact plan can be had, and the sentence that refuses one asked for elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fdda_deploy.errors import ConfigError

if TYPE_CHECKING:
    from fdda_deploy.config.sections import QuantizeConfig, SynthesisConfig


def channel_setter(settings: QuantizeConfig) -> str:
    """Returns the flag that is in use and sets each channel's scale, or ""."""
    given = {
        "--scale-search": settings.scale_search != "none",
        "--psg": settings.psg,
        "--scale-clip": settings.scale_clip is not None,
    }
    return next((flag for flag, in_use in given.items() if in_use), "")


def as_published(synthesis: SynthesisConfig) -> bool:
    """Returns whether a recipe is named whose published form quantizes fewer tensors."""
    if synthesis.recipe in {"auto", "none"}:
        return False
    return not synthesis.overrides.get("quantize_everything", synthesis.recipe != "fdda-paper")


def require_compact_plan(
    settings: QuantizeConfig, target: str | None, *, published: bool = False
) -> None:
    """Refuses a compact plan that was asked for by name where there can be none.

    Args:
        settings: Left open, ``compact_plan`` is where it can be, and nothing is refused.
        target: The build's; None while its backend is not chosen.
        published: The build quantizes as the published recipe has it.

    Raises:
        ConfigError: The reason, and what to take instead.
    """
    if not settings.compact_plan:
        return
    scheme = settings.scheme
    flag = channel_setter(settings)
    if not scheme.int8_throughout:
        narrow = scheme.first_last_bits != 8
        asked = scheme.name + (
            f" with --first-last-bits {scheme.first_last_bits}" if narrow else ""
        )
        reason, instead = f"for w8a8 with 8 bits throughout, got {asked}", "Take --scheme w8a8"
    elif flag:
        reason, instead = f"one scale a weight, but {flag} sets each channel's", f"Drop {flag}"
    elif published:
        reason, instead = "not in the published recipe", "Take --recipe fdda"
    elif target not in {None, "rtx"}:
        reason, instead = f"for TensorRT-RTX alone, got target {target}", "Take --target rtx"
    else:
        return
    raise ConfigError(f"--compact-plan: {reason}. {instead}, or leave --compact-plan out.")


def require_compact_repair(compact_plan: bool | None, target: str, *, fix: bool = True) -> None:
    """Refuses a compact plan of somebody's ONNX file where there can be none.

    Args:
        compact_plan: Left open, it is made for ``rtx`` if it can be proved; False is never refused.
        target: Whose rules the file is held against.
        fix: The file is to be repaired.

    Raises:
        ConfigError: The reason, and what to take instead.
    """
    if not compact_plan:
        return
    if not fix:
        reason, instead = "goes with --fix", "Add --fix"
    elif target != "rtx":
        reason, instead = f"for TensorRT-RTX alone, got target {target}", "Take --target rtx"
    else:
        return
    raise ConfigError(f"--compact-plan: {reason}. {instead}, or leave --compact-plan out.")
