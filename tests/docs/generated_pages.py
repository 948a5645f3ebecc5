"""Pages of the manual that the code itself writes: the command line, and the schemes.

python tests/docs/generated_pages.py writes them into docs/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.cli import app
from fdda_deploy.errors import FddaDeployError
from fdda_deploy.exporters.placement import place
from fdda_deploy.exporters.placement_table import TABLE, TARGETS
from fdda_deploy.quant.scheme import PRESETS, Scheme, scheme_from_name

DOCS = Path(__file__).parents[2] / "docs"
WRITTEN = (
    "This page is written by `python tests/docs/generated_pages.py`; a test compares it with the "
    "code."
)

_CLI_HEAD = f"""\
# The command line

{WRITTEN}

`fdda-deploy COMMAND --help` says the same in the terminal. Exit codes: 0 done, 1 failed (one line
on stderr says why), 2 wrong usage, 130 interrupted, 143 terminated. Every option of a network can
also stand in a TOML file given with `--config`; flags win.
"""

_SCHEMES_HEAD = f"""\
# Schemes and hardware

{WRITTEN} [Pick a scheme](howto/pick_a_scheme.md) is the short way to a choice.

A scheme is `wNaM` (N weight bits, 2 to 8; M activation bits, 2 to 8 or 16 for floating point),
`fp8` or `fp16`. First and last layer have 8 bits unless `--first-last-bits` says otherwise.

## What the hardware executes

| scheme | weights | activations | what runs |
|---|---|---|---|
"""

_STORED_HEAD = """
## How a weight is stored

By target, for a dense convolution, a depthwise one, and a matrix with 128 inputs, each in the
middle of a network.

| scheme | target | convolution | depthwise | matrix |
|---|---|---|---|---|
"""

_PLACEMENT_HEAD = """
## Where Q/DQ pairs go

| row | targets | reason |
|---|---|---|
"""


def cli_page() -> str:
    """Returns docs/cli.md: every command with its options, those of a network once."""
    root = typer.main.get_command(app)
    commands = dict(_commands(root, ""))
    network = commands["build"].params
    lines = [_CLI_HEAD]
    for name, command in commands.items():
        shared = _takes_network(command, network)
        lines.append(f"## `fdda-deploy {name}`\n\n{_paragraphs(command.help)}\n")
        own = [p for p in command.params if not (shared and _same(p, network))]
        if shared:
            lines.append("Takes the [options of a network](#options-of-a-network).\n")
        lines.extend(_option_table(own))
        lines.extend(_examples(command.epilog))
    lines.append("## Options of a network\n")
    panels = dict.fromkeys(getattr(p, "rich_help_panel", None) or "Argument" for p in network)
    for panel in panels:
        of_panel = [
            p for p in network if (getattr(p, "rich_help_panel", None) or "Argument") == panel
        ]
        lines.append(f"### {panel}\n")
        lines.extend(_option_table(of_panel))
    lines.append("## `fdda-deploy`\n")
    lines.extend(_option_table(root.params))
    return "\n".join(lines).rstrip() + "\n"


def schemes_page() -> str:
    """Returns docs/schemes.md: presets, storage by target, the placement table."""
    rows, stored = [], []
    for name in PRESETS:
        scheme = scheme_from_name(name)
        widths = _widths(scheme)
        rows.append(f"| `{name}` | {widths[0]} | {widths[1]} | {scheme.runs_as} |")
        stored.extend(
            f"| `{name}` | `{target}` | {' | '.join(_storages(scheme, target))} |"
            for target in TARGETS
        )
    places = [
        f"| {row.name} | {', '.join(target for target in TARGETS if target in row.targets)} "
        f"| {row.reason} |"
        for row in TABLE.values()
    ]
    return (
        f"{_SCHEMES_HEAD}{_joined(rows)}{_STORED_HEAD}{_joined(stored)}"
        f"{_PLACEMENT_HEAD}{_joined(places)}"
    )


PAGES: dict[str, Callable[[], str]] = {"cli.md": cli_page, "schemes.md": schemes_page}


def _joined(rows: list[str]) -> str:
    return "\n".join(rows) + "\n"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yields the name and click command of every leaf, in the order of ``--help``."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
        return
    for key, child in below.items():
        yield from _commands(child, f"{name} {key}".strip())


def _takes_network(command: Any, network: list[Any]) -> bool:
    names = {parameter.name for parameter in command.params}
    return sum(parameter.name in names for parameter in network) > len(network) // 2


def _same(parameter: Any, network: list[Any]) -> bool:
    return any((parameter.name, parameter.help) == (other.name, other.help) for other in network)


def _option_table(parameters: list[Any]) -> list[str]:
    rows = []
    for parameter in parameters:
        if parameter.name == "help" or getattr(parameter, "hidden", False):
            continue
        names = "`, `".join(_names(parameter))
        rows.append(f"| `{names}` | {_cell(parameter.help or '')}{_default(parameter)} |")
    return ["| option | what |", "|---|---|", *rows, ""] if rows else []


def _names(parameter: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        return [parameter.metavar or parameter.name.upper()]
    if parameter.is_flag:
        return [*parameter.opts, *parameter.secondary_opts]
    metavar = parameter.metavar or "VALUE"
    return [f"{opt} {metavar}" for opt in parameter.opts]


def _default(parameter: Any) -> str:
    """Returns what stands where nothing is given, for plain numbers and words alone."""
    value = parameter.default
    if isinstance(value, bool) or not isinstance(value, int | float | str) or value == "":
        return ""
    return f" Default `{value}`."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _paragraphs(text: str | None) -> str:
    return "\n\n".join(_cell(part) for part in (text or "").split("\n\n"))


def _examples(epilog: str | None) -> list[str]:
    found = re.findall(r"^\s*(fdda-deploy .*)$", epilog or "", flags=re.MULTILINE)
    return ["```bash", *found, "```", ""] if found else []


def _widths(scheme: Scheme) -> tuple[str, str]:
    if scheme.numbers == "fp8":
        return "FP8", "FP8"
    if scheme.numbers == "fp16":
        return "FP16", "FP16"
    acts = "floating point" if scheme.weight_only else f"{scheme.act_bits} bits"
    return f"{scheme.weight_bits} bits", acts


def _storages(scheme: Scheme, target: str) -> list[str]:
    model = _small_graph()
    everything = {value.name for value in model.graph.value_info} | {"x"}
    weights = {initializer.name: None for initializer in model.graph.initializer}
    try:
        found = place(model, scheme, target, torch_tensors=everything, parameters=weights)
    except FddaDeployError as error:
        return [f"refused: {_cell(str(error)).split(': ', 1)[1].split('. ')[0]}", "", ""]
    points = {point.initializer: point for point in found.weights}
    return [_storage(points.get(name)) for name in ("middle", "depthwise", "matrix")]


def _storage(point: Any) -> str:
    if point is None:
        return "not quantized"
    text = str(point.storage).upper()
    if point.storage == "int8" and point.num_bits < 8:
        text += f", {point.num_bits}-bit grid"
    return text + (f", blocks of {point.block_size}" if point.block_size else "")


def _small_graph() -> onnx.ModelProto:
    """Returns a network with each kind of layer between a first and a last one."""
    shapes = {
        "first": (32, 3, 3, 3),
        "middle": (32, 32, 3, 3),
        "depthwise": (32, 1, 3, 3),
        "wide": (128, 32, 1, 1),
        "matrix": (128, 128),
        "last": (16, 128),
    }
    node = helper.make_node
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", ["x", "first"], ["a"], name="first", **pads),
        node("Relu", ["a"], ["b"], name="relu0"),
        node("Conv", ["b", "middle"], ["c"], name="middle", **pads),
        node("Relu", ["c"], ["d"], name="relu1"),
        node("Conv", ["d", "depthwise"], ["e"], name="depthwise", group=32, **pads),
        node("Relu", ["e"], ["f"], name="relu2"),
        node("Conv", ["f", "wide"], ["g"], name="wide"),
        node("GlobalAveragePool", ["g"], ["h"], name="pool"),
        node("Flatten", ["h"], ["i"], name="flat"),
        node("Gemm", ["i", "matrix"], ["j"], name="matrix", transB=1),
        node("Relu", ["j"], ["k"], name="relu3"),
        node("Gemm", ["k", "last"], ["y"], name="last", transB=1),
    ]
    weights = [
        numpy_helper.from_array(np.ones(shape, dtype=np.float32), name)
        for name, shape in shapes.items()
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "every kind of layer",
        [value("x", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [value("y", TensorProto.FLOAT, ["N", 16])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    return onnx.shape_inference.infer_shapes(model)


if __name__ == "__main__":
    for page, text in PAGES.items():
        (DOCS / page).write_text(text(), encoding="utf-8")
