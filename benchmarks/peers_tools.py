"""The tools that benchmarks/peers.py compares, and the command each quantizes one network with."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import onnx
from peers_inputs import NETWORKS, SEED, Inputs

HERE = Path(__file__).parent
ORT, MODELOPT, OURS = "ONNX Runtime", "ModelOpt", "fdda-deploy"
TOOLS = (ORT, MODELOPT, OURS)
PEERS = (ORT, MODELOPT)


@dataclass(frozen=True)
class Variant:
    """One way to quantize with one tool.

    Attributes:
        tool: One of `TOOLS`.
        name: What is special about it.
        scheme: ``w8a8`` or ``w4a8``; peers are compared at w8a8 alone, which is all they do.
        options: Arguments of the tool's script, or of our command.
    """

    tool: str
    name: str
    scheme: str
    options: tuple[str, ...]

    @property
    def key(self) -> dict[str, str]:
        """What a row of it is known by, beside its network."""
        return {"tool": self.tool, "variant": self.name, "scheme": self.scheme}

    @property
    def slug(self) -> str:
        """A file name."""
        return "-".join(f"{self.tool} {self.name} {self.scheme}".lower().replace(",", "").split())


def _ours(scheme: str, target: str) -> Variant:
    options = ("--scheme", scheme, "--target", target, "--effort", "fast", "--recipe", "none")
    return Variant(OURS, target, scheme, options)


VARIANTS = (
    Variant(ORT, "minmax", "w8a8", ("--method", "minmax", "--activations", "int8")),
    Variant(ORT, "minmax, uint8", "w8a8", ("--method", "minmax", "--activations", "uint8")),
    Variant(MODELOPT, "max, fp32", "w8a8", ("--method", "max", "--floats", "fp32")),
    _ours("w8a8", "trt"),
    _ours("w8a8", "rtx"),
    _ours("w8a8", "ort-cpu"),
    Variant(MODELOPT, "entropy", "w8a8", ("--method", "entropy", "--floats", "fp16")),
    Variant(ORT, "entropy", "w8a8", ("--method", "entropy", "--activations", "int8")),
    _ours("w4a8", "trt"),
)
"""In the order they are measured in: a run that is stopped has what is compared first."""


def command_of(
    variant: Variant, network: str, inputs: Inputs, out: Path, *, threads: int, modelopt: Path
) -> tuple[list[str], Path]:
    """Returns the command that quantizes, and the file it writes.

    Args:
        variant: How.
        network: A key of `peers_inputs.NETWORKS`.
        inputs: Its files.
        out: Folder for the results, which is there.
        threads: CPU threads.
        modelopt: Python of the environment with ModelOpt.
    """
    if variant.tool == OURS:
        command = [sys.executable, "-m", "fdda_deploy", "export", *NETWORKS[network].options()]
        command += [*variant.options, "--calib-limit", str(inputs.num_calib), "--seed", str(SEED)]
        command += ["--threads", str(threads), "--device", "cpu", "--no-cache", "--quiet"]
        return [*command, "--out", str(out)], file_of(variant, out)
    graph = file_of(variant, out)
    python, script = {
        ORT: (sys.executable, "peers_ort.py"),
        MODELOPT: (str(modelopt), "peers_modelopt.py"),
    }[variant.tool]
    files = [str(inputs.float_graph), str(inputs.calib), str(graph)]
    return [python, str(HERE / script), *files, *variant.options, "--threads", str(threads)], graph


def file_of(variant: Variant, out: Path) -> Path:
    """Returns the file that a tool writes into a folder."""
    return out / ("model.qdq.onnx" if variant.tool == OURS else "model.onnx")


def require_same_images(graph: Path, inputs: Inputs) -> None:
    """Checks that our graph was calibrated on the images that the others were given.

    Raises:
        ValueError: It says of itself that they were others.
    """
    model = onnx.load(graph, load_external_data=False)
    found = {entry.key: entry.value for entry in model.metadata_props}
    digest = found.get("fdda_deploy.data_digest")
    if digest != inputs.calib_digest:
        raise ValueError(
            f"{graph}: calibrated on images {digest}, the other tools on {inputs.calib_digest}. "
            "Delete the work folder and measure again."
        )
