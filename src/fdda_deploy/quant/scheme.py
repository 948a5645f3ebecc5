"""Schemes: how many bits weights and activations get, and what the hardware really executes."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from fdda_deploy.errors import ConfigError

PRESETS = ("w8a8", "w4a8", "w4a16", "w8a16", "w4a4", "w5a5", "w6a6", "fp8", "fp16")
"""Schemes that have a name in the documentation; any ``wNaM`` with N and M in range works."""
NUMBERS = ("integer", "fp8", "fp16")
"""What a tensor is rounded to: integers, E4M3 behind a scale, or 16-bit floating point alone."""
_FLOAT_WIDTHS = {"fp8": (8, 8), "fp16": (8, 16)}


@dataclass(frozen=True)
class Scheme:
    """Bit widths of one build.

    Attributes:
        weight_bits: 2 to 8.
        act_bits: 2 to 8, or 16 for weight-only quantization (activations stay in floating point).
        first_last_bits: Width of weights and input activations of the first and last weighted
            layer; 8 unless asked otherwise, as the field's tables have it ("F8L8").
        numbers: One of `NUMBERS`; ``fp8`` has 8-bit weights and activations, ``fp16`` quantizes
            nothing and casts the network.
    """

    weight_bits: int
    act_bits: int
    first_last_bits: int = 8
    numbers: str = "integer"

    def __post_init__(self) -> None:
        if not 2 <= self.weight_bits <= 8:
            raise ConfigError(f"--weight-bits {self.weight_bits}: weights take 2 to 8 bits.")
        if not 2 <= self.act_bits <= 8 and self.act_bits != 16:
            raise ConfigError(f"--act-bits {self.act_bits}: activations take 2 to 8 bits, or 16.")
        if not 2 <= self.first_last_bits <= 8:
            raise ConfigError(f"--first-last-bits {self.first_last_bits}: want 2 to 8.")
        if self.numbers not in NUMBERS:
            raise ConfigError(f"numbers {self.numbers!r}: want one of {', '.join(NUMBERS)}.")
        self._require_float_widths()

    def _require_float_widths(self) -> None:
        if self.numbers == "integer":
            return
        widths = _FLOAT_WIDTHS[self.numbers]
        if (self.weight_bits, self.act_bits) != widths or self.first_last_bits != 8:
            raise ConfigError(
                f"--scheme {self.numbers} fixes all widths, got --weight-bits {self.weight_bits}, "
                f"--act-bits {self.act_bits}, --first-last-bits {self.first_last_bits}. "
                "Leave them out."
            )

    @property
    def name(self) -> str:
        """For instance ``w4a8`` or ``fp8``."""
        if self.numbers != "integer":
            return self.numbers
        return f"w{self.weight_bits}a{self.act_bits}"

    @property
    def storage(self) -> str:
        """What a quantized tensor is stored as unless its layer says otherwise: int8 or fp8."""
        return "fp8" if self.numbers == "fp8" else "int8"

    @property
    def weight_only(self) -> bool:
        """Activations stay in floating point."""
        return self.act_bits == 16

    @property
    def int8_throughout(self) -> bool:
        """Weights and activations are integers of 8 bits, those of the first and last layer too."""
        widths = self.weight_bits, self.act_bits, self.first_last_bits
        return self.numbers == "integer" and widths == (8, 8, 8)

    @property
    def runs_as(self) -> str:
        """One sentence on what NVIDIA hardware executes for this scheme, for the report."""
        if self.numbers != "integer":
            return _FLOAT_RUNS_AS[self.numbers]
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


_FLOAT_RUNS_AS = {
    "fp8": "Native: FP8 (E4M3) weights and activations on tensor cores, from compute capability "
    "8.9 on.",
    "fp16": "FP16 throughout, with FP32 where FP16 cannot hold the numbers. Nothing is quantized.",
}


def scheme_from_name(name: str, first_last_bits: int = 8) -> Scheme:
    """Returns the scheme that ``wNaM``, ``fp8`` or ``fp16`` names, for instance ``w4a8``.

    Raises:
        ConfigError: Another form, or widths outside their range.
    """
    if name in _FLOAT_WIDTHS:
        return Scheme(*_FLOAT_WIDTHS[name], first_last_bits, name)
    match = re.fullmatch(r"w(\d{1,2})a(\d{1,2})", name)
    if match is None:
        close = difflib.get_close_matches(name.lower(), PRESETS, n=1, cutoff=0.5)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ConfigError(
            f"--scheme {name}: want wNaM, for instance {', '.join(PRESETS[:4])}; fp8 or fp16.{hint}"
        )
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
