"""`fdda-deploy verify`: is the package whole, will it load here, does it answer as it did?

Nothing in the package is executed: its scripts are only read, its plan is given to TensorRT and
its graph to ONNX Runtime after every file was found unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fdda_deploy.engines.deploy_manifest import MANIFEST, Manifest, read_manifest
from fdda_deploy.engines.preflight import (
    MachineFacts,
    Verdict,
    facts_here,
    graph_verdict,
    plan_verdict,
)
from fdda_deploy.engines.probe import (
    TOLERANCE,
    ProbeResult,
    compare_probe,
    open_graph,
    probe_from_bytes,
)
from fdda_deploy.engines.runner import Runner
from fdda_deploy.engines.sealed_folder import added_files, changed_files, read_inside
from fdda_deploy.engines.trt_api import load_api
from fdda_deploy.engines.trt_run import TrtRunner
from fdda_deploy.errors import EngineError


@dataclass(frozen=True)
class Verification:
    """What a package is worth on this machine.

    Attributes:
        loads: The plan will load and answers as stored; for a package without a plan, the graph.
        reason: One line: why, or why not and what still works.
        problems: One line for each file that was changed, is missing or was added.
        plan: The plan's verdict; None where the files are not as packaged.
        graph: The graph's.
        probes: The self-tests that were run.
    """

    loads: bool
    reason: str
    problems: list[str] = field(default_factory=list)
    plan: Verdict | None = None
    graph: Verdict | None = None
    probes: list[ProbeResult] = field(default_factory=list)


def verify_package(folder: Path, *, facts: Callable[[], MachineFacts] = facts_here) -> Verification:
    """Returns what a package is worth on this machine.

    Args:
        folder: Written by `write_package`, or by anybody.
        facts: Of the machine; asked for only when the files are as packaged.

    Raises:
        EngineError: There is no package to speak of: no folder, or no readable manifest.
    """
    manifest = read_manifest(folder)
    problems = changed_files(folder, manifest["files"])
    problems += added_files(folder, {MANIFEST, *manifest["files"]})
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        reason = f"not as it was packaged: {problems[0]}{more}. Get the package again"
        return Verification(False, reason, problems)
    machine = facts()
    plan, graph = plan_verdict(manifest, machine), graph_verdict(manifest, machine)
    probes: list[ProbeResult] = []
    try:
        if graph.loads and manifest["probe"] is not None:
            probes.append(_graph_probe(folder, manifest))
        if plan.loads and manifest["probe"] is not None:
            probes.append(_plan_probe(folder, manifest))
    except EngineError as error:
        return Verification(False, str(error).rstrip("."), [], plan, graph, probes)
    wrong = next((probe for probe in probes if not probe.passed), None)
    if wrong is not None:
        reason = (
            f"{wrong.runs_on} answers the stored images otherwise than when it was packaged: "
            f"relative L2 {wrong.relative_l2:.2g}, at most {TOLERANCE:g}. Do not deploy it here"
        )
        return Verification(False, reason, [], plan, graph, probes)
    loads = graph.loads if manifest["plan"] is None else plan.loads
    return Verification(loads, _reason(manifest, plan, graph), [], plan, graph, probes)


def _reason(manifest: Manifest, plan: Verdict, graph: Verdict) -> str:
    """Returns the line for a package whose files are whole and whose probes passed."""
    if manifest["plan"] is None:
        return graph.reason
    if plan.loads or not graph.loads:
        return plan.reason
    return f"{plan.reason}; {manifest['graph']['file']} runs with ONNX Runtime: python infer.py"


def _graph_probe(folder: Path, manifest: Manifest) -> ProbeResult:
    return _probe(folder, manifest, open_graph(read_inside(folder, manifest["graph"]["file"])))


def _plan_probe(folder: Path, manifest: Manifest) -> ProbeResult:
    plan = manifest["plan"]
    return _probe(
        folder,
        manifest,
        TrtRunner(read_inside(folder, plan["file"]), load_api(plan["flavour"])),
    )


def _probe(folder: Path, manifest: Manifest, opened: Runner) -> ProbeResult:
    probe = probe_from_bytes(read_inside(folder, manifest["probe"]["file"]))
    with opened as runner:
        return compare_probe(runner, probe, manifest["outputs"][0]["name"])
