"""QParams: scale, zero-point, axis and integer range of one quantized tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fdda_deploy.errors import CalibrationError

FloatArray = npt.NDArray[np.float32]
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""A scale below the smallest normal float32 is refused by TensorRT (rule T005)."""
E4M3_MAX = 448
"""Largest FP8 E4M3 number; a grid from -448 to 448 is that format, as no integer grid is."""


@dataclass(frozen=True)
class QParams:
    """How one tensor maps to integers: ``x_int = clip(round(x / scale) + zero_point, qmin, qmax)``.

    ``zero_point`` is 0 for everything that TensorRT executes; 8-bit activations of ``--target
    ort-cpu`` alone have others. Below 8 bits an asymmetric range
    costs nothing all the same: the n-bit grid is carried in INT8, so ``[qmin, qmax]`` may be any
    run of ``2**n`` integers inside [-128, 127], for instance [0, 15] behind a ReLU.

    The range [-448, 448] stands for FP8 E4M3: the steps between are then those of `quant.fp8`.

    Attributes:
        scale: Real units per integer step, float32: ``()`` per tensor, ``(C,)`` per channel, or for
            blocks the shape of the tensor with ``axis`` divided by ``block_size``.
        qmin: Smallest integer.
        qmax: Largest integer.
        axis: Channel axis of ``scale`` (the blocked axis with ``block_size``); None per tensor.
        zero_point: The integer that means 0.0.
        block_size: Elements along ``axis`` that share one scale; None without blocks.

    Raises:
        CalibrationError: A scale that is not finite and normal, a shape that does not fit ``axis``,
            or a range that is empty, or neither inside INT8 nor that of FP8.
    """

    scale: FloatArray
    qmin: int
    qmax: int
    axis: int | None = None
    zero_point: int = 0
    block_size: int | None = None

    def __post_init__(self) -> None:
        scale = np.asarray(self.scale, dtype=np.float32)
        object.__setattr__(self, "scale", scale)
        if not self.qmin <= self.zero_point <= self.qmax or self.qmin == self.qmax:
            raise CalibrationError(
                f"integer range [{self.qmin}, {self.qmax}] must hold two values or more and the "
                f"zero-point {self.zero_point}."
            )
        if (self.qmin < -128 or self.qmax > 127) and not self.float8:
            raise CalibrationError(
                f"integer range [{self.qmin}, {self.qmax}] does not fit INT8, [-128, 127]. "
                "Requantize to signed 8 bits or fewer."
            )
        want = 0 if self.axis is None else 1
        if self.block_size is None and scale.ndim != want:
            raise CalibrationError(
                f"scale has shape {scale.shape} but axis is {self.axis}: want "
                f"{'a scalar' if want == 0 else 'one value per channel'}."
            )
        if self.block_size is not None and (self.block_size < 1 or self.axis is None):
            raise CalibrationError(f"block size {self.block_size} needs an axis and a length >= 1.")
        bad = ~np.isfinite(scale) | (scale < SMALLEST_SCALE)
        if bad.any():
            raise CalibrationError(
                f"{int(bad.sum())} of {scale.size} scales are zero, subnormal or not finite. "
                "Calibrate on images that excite the layer, or leave it in float."
            )

    @property
    def float8(self) -> bool:
        """Whether the grid is FP8 E4M3 rather than integers."""
        return (self.qmin, self.qmax, self.zero_point) == (-E4M3_MAX, E4M3_MAX, 0)

    @property
    def num_bits(self) -> int:
        """Bits that the grid needs, for instance 8 for [-128, 127] and FP8, and 4 for [0, 15]."""
        if self.float8:
            return 8
        return int(self.qmax - self.qmin).bit_length()

    @property
    def first_step(self) -> int:
        """The lowest value in steps of ``scale``: ``qmin - zero_point``, for instance 0 of a ReLU.

        ``clip(round(x / scale), first_step, last_step) * scale`` is the value on the grid.
        """
        return self.qmin - self.zero_point

    @property
    def last_step(self) -> int:
        """The highest value in steps of ``scale``: ``qmax - zero_point``."""
        return self.qmax - self.zero_point

    @property
    def low(self) -> FloatArray:
        """Smallest real value that is represented, the shape of ``scale``."""
        return (self.scale * np.float32(self.first_step)).astype(np.float32)

    @property
    def high(self) -> FloatArray:
        """Largest real value that is represented, the shape of ``scale``."""
        return (self.scale * np.float32(self.last_step)).astype(np.float32)

    def scale_for(self, shape: tuple[int, ...]) -> FloatArray:
        """Returns ``scale`` shaped so that it broadcasts over a tensor of ``shape``.

        Raises:
            CalibrationError: The tensor has no such axis, or another number of channels.
        """
        if self.axis is None:
            return self.scale
        if self.axis >= len(shape):
            raise CalibrationError(f"axis {self.axis} is outside a tensor of shape {shape}.")
        channels = shape[self.axis]
        if self.block_size is not None:
            full = np.repeat(self.scale, self.block_size, axis=self.axis)
            if full.shape != shape:
                raise CalibrationError(
                    f"scale of shape {self.scale.shape} with blocks of {self.block_size} does not "
                    f"cover a tensor of shape {shape}."
                )
            return full
        if self.scale.size != channels:
            raise CalibrationError(
                f"scale has shape {self.scale.shape} but axis {self.axis} has {channels} channels. "
                "Recalibrate with --no-cache."
            )
        return self.scale.reshape([-1 if d == self.axis else 1 for d in range(len(shape))])
