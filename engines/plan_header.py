"""What the first 64 bytes of a plan tell: whose it is, which release built it, for which GPUs.

TensorRT's mark ``ftrt`` and the version in bytes 24 to 27 are what NVIDIA's trtexec prints for
``--getPlanVersionOnly``. TensorRT-RTX writes ``vtrt``, the number of bytes at 16, its version at
24, and at 32 one bit for each GPU generation; that is undocumented, and was read off plans of 1.7
built with and without ``--sm``, so only a plan of the very release at hand is judged by it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from fdda_deploy.engines.trt_api import TITLES, TrtApi
from fdda_deploy.engines.trt_capabilities import Flavour, targets_in_order
from fdda_deploy.errors import EngineError

HEADER_BYTES = 64
MARKS: dict[bytes, Flavour] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
OTHER_FILES = {
    b"PK\x03\x04": "a zip archive, perhaps a checkpoint of torch",
    b"\x08": "an ONNX model, perhaps: build it first (`fdda-deploy engine`)",
    b"\x80": "a pickle, perhaps a checkpoint of torch",
    b"{": "JSON text",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself",
}
_SIZE, _VERSION, _TARGETS = 16, 24, 32


@dataclass(frozen=True)
class PlanHeader:
    """What a plan says of itself.

    Attributes:
        flavour: ``tensorrt`` or ``tensorrt_rtx``.
        version: Release that built it: major, minor, patch.
        num_bytes: Length that it should have; None where the header does not say.
        target_bits: One bit per GPU generation, in the order of the bindings; None likewise.
    """

    flavour: Flavour
    version: tuple[int, int, int]
    num_bytes: int | None
    target_bits: int | None

    @property
    def release(self) -> str:
        """For instance ``TensorRT-RTX 1.7.1``."""
        return f"{TITLES[self.flavour]} {'.'.join(map(str, self.version))}"


def read_header(plan: bytes, where: str = "the plan") -> PlanHeader:
    """Returns what ``plan`` says of itself.

    Raises:
        EngineError: It is empty, cut short, or no plan; the message says what it looks like.
    """
    flavour = MARKS.get(plan[:4])
    if flavour is None:
        looks = next((text for mark, text in OTHER_FILES.items() if plan.startswith(mark)), None)
        begin = plan[:4].hex(" ") or "nothing"
        raise EngineError(
            f"{where} is no TensorRT plan: {len(plan):,} bytes that begin with {begin}"
            f"{f' ({looks})' if looks else ''}. Build one with `fdda-deploy engine`."
        )
    if len(plan) < HEADER_BYTES:
        raise EngineError(
            f"{where} is cut short: {len(plan)} bytes, and the header alone has {HEADER_BYTES}. "
            "Copy it again."
        )
    major, minor, patch = plan[_VERSION : _VERSION + 3]
    if flavour == "tensorrt":
        return PlanHeader(flavour, (major, minor, patch), None, None)
    (num_bytes,) = struct.unpack_from("<Q", plan, _SIZE)
    (bits,) = struct.unpack_from("<I", plan, _TARGETS)
    return PlanHeader(flavour, (major, minor, patch), num_bytes, bits)


def require_plan(
    plan: bytes, api: TrtApi, compute_capability: int | None = None, where: str = "the plan"
) -> PlanHeader:
    """Returns the header of a plan that ``api`` may load; says which of the known faults it has.

    Args:
        plan: The whole file.
        api: The TensorRT at hand.
        compute_capability: Of the GPU at hand, 89 for SM89; None to leave that unasked.
        where: How the message calls it, for instance its path.

    Raises:
        EngineError: No plan, another library's, another release's, cut short or longer than it
            says, or not built for this GPU. TensorRT alone can judge what is left.
    """
    header = read_header(plan, where)
    if header.flavour != api.flavour:
        backend = "rtx" if api.flavour == "tensorrt_rtx" else "tensorrt"
        raise EngineError(
            f"{where} is of {header.release}, and this is {api.title}: neither loads the other's. "
            f"Build it again with --backend {backend}."
        )
    here = tuple(int(part) for part in re.findall(r"\d+", api.version)[:3])
    # a plan of TensorRT may have been built version-compatible, within its major release
    same = header.version == here if header.flavour == "tensorrt_rtx" else _major(header, here)
    if not same:
        raise EngineError(
            f"{where} was built by {header.release}, and this is {api.title}, which does not load "
            "it. Build it again here, or install that release."
        )
    if header.num_bytes is not None and header.num_bytes != len(plan):
        fault = "cut short" if len(plan) < header.num_bytes else "longer than it says"
        raise EngineError(
            f"{where} is {fault}: {len(plan):,} bytes of {header.num_bytes:,}. Copy it again."
        )
    targets = targets_of(header, api)
    if compute_capability is not None and targets and compute_capability not in targets:
        names = ", ".join(f"SM{target}" for target in sorted(targets))
        raise EngineError(
            f"{where} was built for {names}, and this GPU is SM{compute_capability}. "
            f"Build it again with --sm {compute_capability} if {api.title} knows that, or without."
        )
    return header


def targets_of(header: PlanHeader, api: TrtApi) -> frozenset[int]:
    """Returns the GPU generations that a plan is for, 89 for SM89; empty where it says none."""
    if header.target_bits is None:
        return frozenset()
    known = targets_in_order(api.module)
    return frozenset(sm for bit, sm in enumerate(known) if header.target_bits >> bit & 1)


def load_plan(path: Path) -> bytes:
    """Returns the bytes of a plan file.

    Raises:
        EngineError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise EngineError(
            f"{path}: cannot be read ({error.strerror}). Build it with `fdda-deploy engine`."
        ) from error


def _major(header: PlanHeader, here: tuple[int, ...]) -> bool:
    return header.version[:1] == here[:1]
