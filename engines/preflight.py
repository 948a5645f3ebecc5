"""Will this plan load on this machine? Decided before TensorRT is asked, in one line.

The rules are NVIDIA's (TensorRT and TensorRT-RTX documentation, "Engine Compatibility"):

- A TensorRT plan runs on the release that built it; one built VERSION_COMPATIBLE also on later
  releases of the same major version, and of the next where `NEXT_MAJOR` has it.
- A TensorRT-RTX plan runs on the very release that built it.
- A TensorRT plan is bound to its platform; a TensorRT-RTX plan runs on Linux and on Windows.
- A TensorRT plan is bound to its GPU's compute capability unless it was built for more; a
  TensorRT-RTX plan is for those it names.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fdda_deploy.engines.deploy_manifest import Manifest
from fdda_deploy.engines.device_memory import INSTALL as INSTALL_MEMORY
from fdda_deploy.engines.device_memory import device_memory_library
from fdda_deploy.engines.gpu import gpu_compute_capability, gpu_name
from fdda_deploy.engines.ort_run import INSTALL_CPU, import_onnxruntime
from fdda_deploy.engines.trt_api import FLAVOURS, TITLES, load_api
from fdda_deploy.errors import MissingBackendError

RTX_PLATFORMS = frozenset({"linux-x86_64", "win32-amd64"})
RTX_DEFAULT_GPUS = (80, 86, 89, 120)
"""What TensorRT-RTX builds for unless it is told otherwise (its page "CPU-Only AOT")."""
NEXT_MAJOR = frozenset({(8, 10), (10, 11)})
"""Major versions across which a VERSION_COMPATIBLE plan loads (TensorRT 11.4's support matrix)."""
AMPERE = 80
VERSION_COMPATIBLE = "VERSION_COMPATIBLE"
STRIPPED = "STRIP_PLAN"
AMPERE_PLUS = "AMPERE_PLUS"
"""The hardware compatibility level for Ampere and every later GPU; it is kept among the flags."""


@dataclass(frozen=True)
class MachineFacts:
    """What decides whether a plan loads.

    Attributes:
        platform: For instance ``linux-x86_64``.
        gpu: Name of the first NVIDIA GPU; None without one, or without a driver.
        compute_capability: Its compute capability, 89 for SM89.
        versions: Release of each TensorRT that imports, by flavour.
        memory_library: ``cuda-bindings`` or ``pycuda``; None where neither is installed.
        onnxruntime: Its release; None where it does not import.
    """

    platform: str
    gpu: str | None
    compute_capability: int | None
    versions: Mapping[str, str]
    memory_library: str | None
    onnxruntime: str | None


@dataclass(frozen=True)
class Verdict:
    """Whether something loads.

    Attributes:
        loads: It will.
        reason: One sentence: why not, or on what.
    """

    loads: bool
    reason: str


def facts_here() -> MachineFacts:
    """Returns the facts of this machine."""
    versions: dict[str, str] = {}
    for flavour in FLAVOURS:
        try:
            versions[flavour] = load_api(flavour).version
        except MissingBackendError:
            continue  # absence is the answer
    try:
        onnxruntime = str(import_onnxruntime().__version__)
    except MissingBackendError:
        onnxruntime = None
    return MachineFacts(
        platform=f"{sys.platform}-{platform.machine()}".lower(),
        gpu=gpu_name(),
        compute_capability=gpu_compute_capability(),
        versions=versions,
        memory_library=device_memory_library(),
        onnxruntime=onnxruntime,
    )


def plan_verdict(manifest: Manifest, facts: MachineFacts) -> Verdict:
    """Returns whether the plan of a package loads, for the first reason that speaks against it.

    Args:
        manifest: Of a package; its plan may be None.
        facts: Of the machine.
    """
    plan = manifest["plan"]
    if plan is None:
        return Verdict(False, "the package has no plan: build one here with build_on_target.py")
    reason = next(filter(None, _reasons(plan, facts)), None)
    if reason is not None:
        return Verdict(False, reason)
    release = f"{TITLES[plan['flavour']]} {plan['version']}"
    return Verdict(True, f"the {release} plan fits what is installed, and {facts.gpu}")


def graph_verdict(manifest: Manifest, facts: MachineFacts) -> Verdict:
    """Returns whether the ONNX graph of a package can be run by ONNX Runtime."""
    if manifest["graph"] is None:
        return Verdict(False, "the package has no ONNX graph")
    if facts.onnxruntime is None:
        return Verdict(False, f"ONNX Runtime is not installed: {INSTALL_CPU}")
    return Verdict(True, f"ONNX Runtime {facts.onnxruntime} runs {manifest['graph']['file']}")


def plan_gpus(plan: Mapping[str, object]) -> frozenset[int] | None:
    """Returns the compute capabilities a plan is for; None where its manifest does not say."""
    numbers = plan["compute_capabilities"]
    return frozenset(numbers) if isinstance(numbers, list) and numbers else None


def _reasons(plan: Manifest, facts: MachineFacts) -> Iterator[str | None]:
    """Yields what speaks against the plan; a later reason takes the earlier ones for mended."""
    title = TITLES[plan["flavour"]]
    release = f"{title} {plan['version']}"
    yield _platform_problem(plan, facts, title)
    yield _gpu_problem(release, facts)
    yield _library_problem(plan, facts, release)
    yield _version_problem(plan, facts, title)
    yield _architecture_problem(plan, facts)
    yield _weights_problem(plan)
    if facts.memory_library is None:
        yield f"no library for device memory; install one: {INSTALL_MEMORY}"


def _platform_problem(plan: Manifest, facts: MachineFacts, title: str) -> str | None:
    built, here = plan["platform"], facts.platform
    if built == here or (plan["flavour"] == "tensorrt_rtx" and here in RTX_PLATFORMS):
        return None
    return f"the {title} plan was built on {built} and this is {here}: build it again here"


def _gpu_problem(release: str, facts: MachineFacts) -> str | None:
    if facts.gpu is not None:
        return None
    return f"no NVIDIA GPU or driver is visible, and the {release} plan needs one"


def _library_problem(plan: Manifest, facts: MachineFacts, release: str) -> str | None:
    if plan["flavour"] in facts.versions:
        return None
    version = plan["version"]
    packages = {
        "tensorrt": f"'tensorrt=={version}'",
        "tensorrt_rtx": f"'tensorrt-rtx-cu13-libs=={version}' "
        f"'tensorrt-rtx-cu13-bindings=={version}'",
    }
    others = [f"{TITLES[f]} {v}" for f, v in facts.versions.items() if f in TITLES]
    instead = f" ({', '.join(others)} cannot load it)" if others else ""
    install = f"pip install {packages[plan['flavour']]}"
    return f"{release} is not installed{instead}; install it: {install}"


def _version_problem(plan: Manifest, facts: MachineFacts, title: str) -> str | None:
    built, here = plan["version"], facts.versions[plan["flavour"]]
    old, new = _numbers(built), _numbers(here)
    if old == new:
        return None
    reason = f"the plan was built by {title} {built} and {here} is installed"
    if plan["flavour"] == "tensorrt" and VERSION_COMPATIBLE in plan["flags"]:
        if new > old and (old[:1] == new[:1] or (old[0], new[0]) in NEXT_MAJOR):
            return None
        return f"{reason}, outside what VERSION_COMPATIBLE covers: build it again here"
    return f"{reason}: install {built}, or build it again here"


def _architecture_problem(plan: Manifest, facts: MachineFacts) -> str | None:
    here, wanted = facts.compute_capability, plan_gpus(plan)
    if here is None or wanted is None or here in wanted:
        return None
    if plan["flavour"] == "tensorrt" and AMPERE_PLUS in plan["flags"] and here >= AMPERE:
        return None
    listed = ", ".join(_dotted(number) for number in sorted(wanted))
    return (
        f"the plan is for compute capability {listed} and {facts.gpu} has {_dotted(here)}: "
        "build it again here"
    )


def _weights_problem(plan: Manifest) -> str | None:
    if STRIPPED not in plan["flags"]:
        return None
    return "the plan was built without its weights: refit it from the graph it was built from"


def _numbers(version: str) -> tuple[int, ...]:
    """Returns major, minor, patch and build, as far as they are told; wheels leave zeros out."""
    numbers = [int(part) for part in re.findall(r"\d+", version)[:4]]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _dotted(number: int) -> str:
    return f"{number // 10}.{number % 10}"
