"""Schemes: how many bits weights and activations get, and what the hardware really executes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fdda_deploy.errors import ConfigError

PRESETS = ("w8a8", "w4a8", "w4a16", "w8a16", "w4a4", "w5a5", "w6a6")
"""Schemes that have a name in the documentation; any ``wNaM`` with N and M in range works."""


@dataclass(frozen=True)
class Scheme:
    """Bit widths of one build.

    Attributes:
        weight_bits: 2 to 8.
        act_bits: 2 to 8, or 16 for weight-only quantization (activations stay in floating point).
        first_last_bits: Width of weights and input activations of the first and last weighted
            layer; 8 unless asked otherwise, as the field's tables have it ("F8L8").
    """

    weight_bits: int
    act_bits: int
    first_last_bits: int = 8

    def __post_init__(self) -> None:
        if not 2 <= self.weight_bits <= 8:
            raise ConfigError(f"--weight-bits {self.weight_bits}: weights take 2 to 8 bits.")
        if not 2 <= self.act_bits <= 8 and self.act_bits != 16:
            raise ConfigError(f"--act-bits {self.act_bits}: activations take 2 to 8 bits, or 16.")
        if not 2 <= self.first_last_bits <= 8:
            raise ConfigError(f"--first-last-bits {self.first_last_bits}: want 2 to 8.")

    @property
    def name(self) -> str:
        """For instance ``w4a8``."""
        return f"w{self.weight_bits}a{self.act_bits}"

    @property
    def weight_only(self) -> bool:
        """Activations stay in floating point."""
        return self.act_bits == 16

    @property
    def runs_as(self) -> str:
        """One sentence on what NVIDIA hardware executes for this scheme, for the report."""
        if self.weight_only:
            return (
                f"Weight-only: {self.weight_bits}-bit weights are dequantized and the products run "
                "in floating point. Smaller plan, no integer arithmetic."
            )
        if self.weight_bits == 8 and self.act_bits == 8:
            return "Native: INT8 weights and activations on INT8 tensor cores."
        if self.act_bits == 8:
            return (
                f"{self.weight_bits}-bit weight grid carried in INT8 tensors: the accuracy of "
                f"{self.weight_bits} bits at the speed of INT8 (TensorRT has no INT4 convolution)."
            )
        return (
            f"{self.weight_bits}-bit weights and {self.act_bits}-bit activations carried in INT8 "
            "tensors: the papers' protocol, executed exactly, no faster than w8a8."
        )


def scheme_from_name(name: str, first_last_bits: int = 8) -> Scheme:
    """Returns the scheme that ``wNaM`` names, for instance ``w4a8``.

    Raises:
        ConfigError: Another form, or widths outside their range.
    """
    match = re.fullmatch(r"w(\d{1,2})a(\d{1,2})", name)
    if match is None:
        raise ConfigError(f"--scheme {name}: want wNaM, for instance {', '.join(PRESETS[:4])}.")
    return Scheme(int(match[1]), int(match[2]), first_last_bits)


def scheme_from_bits(num_bits: int, first_last_bits: int = 8) -> Scheme:
    """Returns the scheme that ``--bits`` names: ``num_bits`` weights, 8-bit activations.

    Activations stay at 8 bits because that is what the tensor cores execute.

    Raises:
        ConfigError: ``num_bits`` is outside 2 to 8.
    """
    if not 2 <= num_bits <= 8:
        raise ConfigError(f"--bits {num_bits}: want 2 to 8.")
    return Scheme(num_bits, 8, first_last_bits)
