"""Rewrites that make the translated graph short, and none that part it from its torch program.

The exporter's own clean-up also merges equal parameters, drops biases that happen to be zero, joins
equal computations and fuses BatchNorm. Calibration, bias correction and fine-tuning change numbers
after this point, so each parameter and each node must keep its own torch twin.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import numpy_helper
from onnxscript import ir, optimizer
from onnxscript.rewriter import RewriteRuleSet
from onnxscript.rewriter.rules import common
from torch import fx, nn

MAX_PASSES = 3

_RULES = (
    common.mul_by_1_rule,
    common.add_0_rule,
    common.sub_0_rule,
    common.div_by_1_rule,
    common.dropout_zero_rule,
    common.dropout_inference_rule,
    common.no_op_cast_rule,
    common.no_op_expand_rule,
    common.no_op_transpose_rule,
    common.no_op_dynamic_scatter_nd_rule,
    common.no_op_static_scatter_nd_rule,
    common.cast_cast_rule,
    common.cast_constant_of_shape_rule,
    common.cast_constant_of_shape_without_value_rule,
    common.transpose_transpose_rule,
    common.unsqueeze_unsqueeze_rule,
    common.reshape_reshape_rule,
    common.materialize_reshape_shape_rule,
    common.collapse_slice_rule,
    common.collapse_slice2_rule,
    common.min_min_rule,
    common.max_max_rule,
    common.min_max_rule,
    common.max_min_rule,
    common.normalize_pad_format_conv_rule,
    common.fuse_pad_into_conv_rule,
)


def tidy(model: ir.Model) -> None:
    """Folds constants, drops operators that do nothing, and merges zero pads into convolutions."""
    passes = ir.passes.common
    passes.InlinePass()(model)
    rules = RewriteRuleSet(_RULES)
    for _ in range(MAX_PASSES):
        optimizer.fold_constants(model, onnx_shape_inference=True)
        changed = rules.apply_to_model(model)
        passes.RemoveUnusedNodesPass()(model)
        if not changed:
            break
    passes.RemoveUnusedFunctionsPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.LiftSubgraphInitializersToMainGraphPass()(model)
    passes.OutputFixPass()(model)
    passes.NameFixPass()(model)


def drop_made_up_biases(graph: onnx.GraphProto, module: fx.GraphModule) -> None:
    """Removes the zeros that the exporter adds to layers which have no bias."""
    state = module.state_dict()
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in {"Conv", "ConvTranspose", "Gemm"} or len(node.input) < 3:
            continue
        bias = initializers.get(node.input[2])
        if bias is not None and bias.name not in state and not numpy_helper.to_array(bias).any():
            del node.input[2]
    used = {tensor for node in graph.node for tensor in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)


def freeze_computed(
    graph: onnx.GraphProto,
    module: fx.GraphModule,
    fx_from_node: dict[str, str],
    parameters: dict[str, tuple[str, bool]],
) -> dict[str, tuple[str, bool]]:
    """Turns parameters that constant folding used up into buffers, so that nothing trains them.

    The graph holds what was computed from such a parameter (a standardized weight, a transposed
    copy), not the parameter, so a later change could not reach it.

    Args:
        graph: The named ONNX graph.
        module: Its torch twin; changed in place.
        fx_from_node: ONNX node name to torch node name.
        parameters: Weight initializer to (torch parameter name, transposed).

    Returns:
        ``parameters`` without the frozen ones.
    """
    read: dict[str, set[str]] = {}
    for node in graph.node:
        twin = fx_from_node.get(node.name, "")
        names = {parameters.get(tensor, (tensor, False))[0] for tensor in node.input}
        read.setdefault(twin, set()).update(names)
    live = {name for name, _ in module.named_parameters()}
    for node in module.graph.nodes:
        target = str(node.target)
        if node.op == "get_attr" and any(target not in read.get(u.name, ()) for u in node.users):
            live.discard(target)
    live &= {str(n.target) for n in module.graph.nodes if n.op == "get_attr" and n.users}
    for name, value in list(module.named_parameters()):
        if name not in live:
            _as_buffer(module, name, value)
    return {tensor: twin for tensor, twin in parameters.items() if twin[0] in live}


def _as_buffer(module: nn.Module, name: str, value: Any) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    del owner._parameters[leaf]
    owner.register_buffer(leaf, value.detach())
