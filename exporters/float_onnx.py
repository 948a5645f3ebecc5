"""Torch graph to float ONNX with readable names, and the map between the two (the torch file here).

The exporter hands back the very program it translated. That program is what gets quantized, so each
ONNX tensor has a torch twin of a known name, and no second tracing can drift from the first.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import fx

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters import names
from fdda_deploy.exporters.functional import make_functional
from fdda_deploy.exporters.tidy import drop_made_up_biases, freeze_computed, tidy

OPSET = 21
IR_VERSION = 10
PROTO_LIMIT_BYTES = 2**31 - 1
TRACE_BATCH = 2
_FX_NODE = "pkg.torch.onnx.fx_node"
_SCOPES = "pkg.torch.onnx.name_scopes"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_UNKNOWN_OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")
_UNTRANSLATED_NODE = re.compile(r"translating node %(\w+) [^\n]*?\(args = \(\[?%(\w+)")
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


@dataclass(frozen=True)
class FloatGraph:
    """One float network as ONNX and as torch graph, with the map from the first to the second.

    Attributes:
        proto: Opset 21, IR 10, dynamic batch, input ``input``, output ``logits``.
        module: The torch program that ``proto`` was translated from; ``(N, C, H, W)`` to logits.
        fx_from_tensor: ONNX tensor name to torch node name, for tensors that nodes compute.
        fx_from_node: ONNX node name to torch node name.
        parameter_from_initializer: Weight initializer to (torch parameter name, transposed).
    """

    proto: onnx.ModelProto
    module: fx.GraphModule
    fx_from_tensor: dict[str, str]
    fx_from_node: dict[str, str]
    parameter_from_initializer: dict[str, tuple[str, bool]]


def export_float(folded: fx.GraphModule, image_shape: tuple[int, int, int]) -> FloatGraph:
    """Returns the float ONNX graph of a folded network, whose operators are made functional.

    Raises:
        ExportError: An operator has no ONNX translation (named with its module path), or the graph
            is larger than a protobuf holds (2 GB).
    """
    parameter = next(folded.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    example = torch.zeros(TRACE_BATCH, *image_shape, device=device)
    batch = torch.export.Dim("batch", min=1)
    program: torch.export.ExportedProgram | None = None
    make_functional(folded)
    with _quiet():
        try:
            program = torch.export.export(
                folded, (example,), dynamic_shapes=({0: batch},), strict=False
            )
            exported = torch.onnx.export(
                program,
                (example,),
                input_names=[names.INPUT],
                output_names=[names.OUTPUT],
                opset_version=OPSET,
                optimize=False,
                verbose=False,
                dynamo=True,
            )
        except Exception as error:  # the exporter raises types of its own and of torch
            raise ExportError(_explain(error, program)) from error
        assert exported is not None
        tidy(exported.model)
        proto = exported.model_proto
        assert exported.exported_program is not None
        module = exported.exported_program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    module = fx.GraphModule(module, module.graph)  # torch.export's own refuses train() and eval()
    if proto.ByteSize() > PROTO_LIMIT_BYTES:
        raise ExportError(
            f"the graph takes {proto.ByteSize()} bytes, more than one ONNX file holds (2 GB). "
            "Quantize a smaller variant."
        )
    _plain_output(module)
    return _named(proto, module)


def _plain_output(module: fx.GraphModule) -> None:
    """Makes the graph return its logits alone, through plain code generation."""
    output = next(node for node in module.graph.nodes if node.op == "output")
    result = output.args[0]
    while isinstance(result, tuple | list):
        result = result[0]
    output.args = (result,)
    module.graph.set_codegen(fx.graph.CodeGen())
    module.recompile()


def _named(proto: onnx.ModelProto, module: fx.GraphModule) -> FloatGraph:
    """Renames nodes and tensors after module paths; strips what names this machine."""
    graph = proto.graph
    fx_names = {node.name for node in module.graph.nodes}
    node_names = names.NodeNames()
    renamed: dict[str, str] = {}
    fx_from_node: dict[str, str] = {}
    fixed = {value.name for value in [*graph.input, *graph.output]}
    fx_from_tensor = _graph_inputs(graph, module)
    for node in graph.node:
        fx_name, path = _origin(node)
        node.name = node_names(path, node.op_type)
        if fx_name in fx_names:
            fx_from_node[node.name] = fx_name
        for index, tensor in enumerate(node.output):
            if tensor in fixed:
                if fx_name in fx_names:
                    fx_from_tensor[tensor] = fx_name
                continue
            suffix = "" if index == 0 else f"_{index}"
            renamed[tensor] = names.tensor_of_node(node.name) + suffix
            if tensor in fx_names:
                fx_from_tensor[renamed[tensor]] = tensor
    for node in graph.node:
        node.input[:] = [renamed.get(tensor, tensor) for tensor in node.input]
        node.output[:] = [renamed.get(tensor, tensor) for tensor in node.output]
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)
    _fold_transposes(graph)
    _strip(proto)
    drop_made_up_biases(graph, module)
    parameters = _parameters(graph, module, fx_from_node)
    parameters = freeze_computed(graph, module, fx_from_node, parameters)
    return FloatGraph(proto, module, fx_from_tensor, fx_from_node, parameters)


def _graph_inputs(graph: onnx.GraphProto, module: fx.GraphModule) -> dict[str, str]:
    placeholders = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    return dict(zip([value.name for value in graph.input], placeholders, strict=False))


def _origin(node: onnx.NodeProto) -> tuple[str, str]:
    """Returns the torch node name and the module path that the exporter recorded on ``node``."""
    recorded = {entry.key: entry.value for entry in node.metadata_props}
    fx_name = recorded.get(_FX_NODE, "").split(" ", 1)[0].lstrip("%")
    try:
        scopes = ast.literal_eval(recorded.get(_SCOPES, "[]"))
    except (ValueError, SyntaxError):
        scopes = []
    path = scopes[-2] if len(scopes) >= 2 else ""
    return fx_name, str(path)


def _fold_transposes(graph: onnx.GraphProto) -> None:
    """Replaces Transpose(initializer), left by large linear layers, with the transposed weight."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type != "Transpose" or node.input[0] not in initializers:
            continue
        perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        value = numpy_helper.to_array(initializers[node.input[0]])
        folded = np.ascontiguousarray(np.transpose(value, perm))
        graph.initializer.append(numpy_helper.from_array(folded, node.output[0]))
        graph.node.remove(node)
    used = {tensor for node in graph.node for tensor in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)


def _strip(proto: onnx.ModelProto) -> None:
    """Removes stack traces and file names, pins the versions, and signs the file."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for holder in [proto, proto.graph, *proto.graph.input, *proto.graph.output]:
        del holder.metadata_props[:]
        holder.doc_string = ""
    for holder in [*proto.graph.value_info, *proto.graph.initializer]:
        del holder.metadata_props[:]
        holder.doc_string = ""
    del proto.functions[:]
    proto.ir_version = IR_VERSION
    proto.graph.name = "network"
    proto.producer_name = "fdda-deploy"
    proto.producer_version = ""


def _parameters(
    graph: onnx.GraphProto, module: fx.GraphModule, fx_from_node: dict[str, str]
) -> dict[str, tuple[str, bool]]:
    """Maps each weight initializer to the torch parameter that holds the same numbers."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    by_name = {node.name: node for node in module.graph.nodes}
    state = module.state_dict()
    found: dict[str, tuple[str, bool]] = {}
    for node in graph.node:
        twin = by_name.get(fx_from_node.get(node.name, ""))
        if node.op_type not in _WEIGHTED or twin is None:
            continue
        for tensor in [name for name in node.input[:2] if name in initializers]:
            value = numpy_helper.to_array(initializers[tensor])
            for argument in twin.args:
                target = str(getattr(argument, "target", ""))
                if getattr(argument, "op", "") != "get_attr" or target not in state:
                    continue
                weight = state[target].detach().cpu().numpy()
                if weight.shape == value.shape and np.array_equal(weight, value):
                    found[tensor] = (target, False)
                elif weight.ndim == 2 and np.array_equal(weight.T, value):
                    found[tensor] = (target, True)
    return found


def _explain(error: Exception, program: torch.export.ExportedProgram | None) -> str:
    """One line: the operator that has no translation and its module, or torch's own first line."""
    chain: BaseException | None = error
    texts: list[str] = []
    while chain is not None:
        texts.append(_ANSI.sub("", str(chain)))
        chain = chain.__cause__ or chain.__context__
    everything = "\n".join(texts)
    operator = _UNKNOWN_OPERATOR.search(everything)
    if operator is not None:
        where = "" if program is None else _module_of(program, everything)
        reason = f"{where}operator {operator[1]} has no ONNX translation"
    else:
        lines = [line.strip() for line in everything.splitlines() if line.strip()]
        reason = (lines[0] if lines else type(error).__name__)[:300].rstrip(".")
    return (
        f"the network cannot be exported to ONNX: {reason}. Replace the operator by one that "
        f"ONNX opset {OPSET} has, or cut the network before it."
    )


def _module_of(program: torch.export.ExportedProgram, text: str) -> str:
    """Returns ``"<module path>: "`` of the node that ``text`` complains about, empty if unknown.

    The exporter decomposes operators first, with a table of its own, so a node that has another
    name there is looked up as a reader of the same tensor.
    """
    match = _UNTRANSLATED_NODE.search(text)
    if match is None:
        return ""
    nodes = [*program.graph.nodes, *program.run_decompositions().graph.nodes]
    found = [node for node in nodes if node.name == match[1]]
    found += [user for node in nodes if node.name == match[2] for user in node.users]
    for node in found:
        stack: dict[str, tuple[str, object]] = node.meta.get("nn_module_stack") or {}
        paths = [path for path, _ in stack.values()]
        if paths and paths[-1]:
            return f"{paths[-1]}: "
    return ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's progress prints and its warnings about itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
