"""The float graph: what it computes, what it is called, and what it must not give away."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_grids import run_onnx
from export_networks import (
    EVERY_NETWORK,
    SHAPE,
    ComputedWeights,
    FreshlyMade,
    FunctionalNorm,
    PadSliceConcat,
    PreActivation,
    Residual,
    SaidTwice,
    SharedModule,
    Untranslatable,
    exported,
    graph_of,
    images,
    seeded,
)
from onnx import numpy_helper
from torch import nn

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.float_onnx import FloatGraph


@pytest.fixture(scope="module", params=EVERY_NETWORK, ids=lambda kind: kind.__name__)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, FloatGraph]:
    module = seeded(request.param)
    return module, graph_of(request.param)


@pytest.fixture(scope="module")
def residual() -> FloatGraph:
    return graph_of(Residual)


def nodes_of(graph: FloatGraph, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in graph.proto.graph.node if node.op_type == op_type]


def initializers_of(graph: FloatGraph) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in graph.proto.graph.initializer}


def test_graph_and_its_torch_twin_compute_what_the_network_computes(pair):
    module, graph = pair
    for count in (1, 5):
        x = images(count)
        with torch.no_grad():
            expected = module(x).numpy()
            twin = graph.module(x).numpy()
        np.testing.assert_allclose(twin, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(run_onnx(graph.proto, x), expected, rtol=1e-4, atol=1e-5)


def test_graph_is_valid_onnx_of_the_pinned_versions(pair):
    _, graph = pair
    onnx.checker.check_model(graph.proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in graph.proto.opset_import] == [("", 21)]
    assert graph.proto.ir_version == 10


def test_names_of_input_and_output_are_fixed_and_the_batch_is_free(pair):
    _, graph = pair
    (given,), (result,) = graph.proto.graph.input, graph.proto.graph.output
    assert (given.name, result.name) == ("input", "logits")
    batch, *rest = given.type.tensor_type.shape.dim
    assert batch.dim_param
    assert tuple(dim.dim_value for dim in rest) == SHAPE
    assert result.type.tensor_type.shape.dim[0].dim_param == batch.dim_param


def test_every_node_is_named_after_its_module_and_operator(pair):
    module, graph = pair
    known = {name for name, _ in module.named_modules()}
    names = [node.name for node in graph.proto.graph.node]
    assert len(set(names)) == len(names)
    for node in graph.proto.graph.node:
        path, _, operator = node.name.rpartition("/")
        assert path in known
        assert re.fullmatch(rf"{node.op_type}(_\d+)?", operator)
        assert [t for t in node.output if t not in {f"{node.name}_output", "logits"}] == []


def test_every_computed_tensor_has_the_torch_twin_it_claims(pair):
    _, graph = pair
    by_name = {node.name: node for node in graph.module.graph.nodes}
    assert set(graph.fx_from_tensor.values()) <= set(by_name)
    assert set(graph.fx_from_node.values()) <= set(by_name)
    model = onnx.ModelProto.FromString(graph.proto.SerializeToString())
    tensors = [t for t in graph.fx_from_tensor if t not in {"input", "logits"}]
    for tensor in tensors:
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None)
        )
    x = images()
    values = dict(zip([o.name for o in model.graph.output], _run_all(model, x), strict=True))
    recorded = _Recorder(graph.module)
    with torch.no_grad():
        recorded.run(x)
    for tensor in tensors:
        twin = recorded.seen[graph.fx_from_tensor[tensor]].numpy()
        np.testing.assert_allclose(values[tensor], twin, rtol=1e-4, atol=1e-5, err_msg=tensor)


class _Recorder(torch.fx.Interpreter):
    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, torch.Tensor] = {}

    def run_node(self, n: torch.fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.seen[n.name] = result.clone()
        return result


def _run_all(model: onnx.ModelProto, x: torch.Tensor) -> list[np.ndarray]:
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x.numpy()})


def test_every_trainable_parameter_is_an_initializer_of_its_own_name(pair):
    """So that a corrected bias or a fine-tuned weight always reaches the file."""
    _, graph = pair
    held = initializers_of(graph)
    mapped = {name for name, _ in graph.parameter_from_initializer.values()}
    for name, value in graph.module.named_parameters():
        if name not in mapped:
            np.testing.assert_array_equal(held[name], value.detach().numpy())


def test_weights_map_to_the_parameters_that_hold_their_numbers(pair):
    _, graph = pair
    held = initializers_of(graph)
    for initializer, (name, transposed) in graph.parameter_from_initializer.items():
        value = graph.module.get_parameter(name).detach().numpy()
        np.testing.assert_array_equal(held[initializer], value.T if transposed else value)


def test_file_names_no_folder_of_this_machine_and_no_source_line(pair):
    _, graph = pair
    raw = graph.proto.SerializeToString()
    folders = {Path.cwd(), Path.home(), Path(torch.__file__).parent, Path(__file__).parent}
    for text in [*map(str, folders), ".py", "File ", "stack_trace", "fx_node", "nn_module"]:
        assert text.encode() not in raw, text


def test_two_exports_of_the_same_network_are_the_same_bytes(residual):
    again = exported(seeded(Residual))
    assert again.proto.SerializeToString() == residual.proto.SerializeToString()
    assert again.parameter_from_initializer == residual.parameter_from_initializer


def test_parameters_keep_the_names_that_the_network_gave_them(residual):
    assert set(residual.parameter_from_initializer) == {
        "stem.weight",
        "conv1.weight",
        "conv2.weight",
        "down.weight",
        "fc.weight",
    }
    assert "conv1.bias" in initializers_of(residual)  # the folded BatchNorm's
    assert not nodes_of(residual, "BatchNormalization")


def test_functional_relu_is_a_node_like_any_other(residual):
    assert [node.name for node in nodes_of(residual, "Relu")] == ["Relu", "Relu_1", "Relu_2"]


def test_pads_are_merged_into_the_convolution():
    graph = graph_of(PadSliceConcat)
    assert not nodes_of(graph, "Pad")
    stem = next(node for node in nodes_of(graph, "Conv") if node.name == "stem/Conv")
    assert stem.input[0] == "input"
    assert next(list(a.ints) for a in stem.attribute if a.name == "pads") == [0, 0, 1, 1]
    assert len(nodes_of(graph, "Slice")) == 2
    assert len(nodes_of(graph, "Concat")) == 1


def test_shared_module_is_two_nodes_on_one_weight():
    graph = graph_of(SharedModule)
    shared = [node for node in nodes_of(graph, "Conv") if node.name.startswith("block/")]
    assert [node.name for node in shared] == ["block/Conv", "block/Conv_1"]
    assert {node.input[1] for node in shared} == {"block.weight"}


@pytest.mark.parametrize(
    ("kind", "kept"),
    [(FunctionalNorm, 0), (PreActivation, 1)],
    ids=["functional", "pre-activation"],
)
def test_batch_norm_folds_where_a_layer_precedes_it_and_stays_elsewhere(kind, kept):
    assert len(nodes_of(graph_of(kind), "BatchNormalization")) == kept


def test_equal_parameters_and_zero_biases_stay_apart():
    """Bias correction and fine-tuning make them differ later."""
    with torch.random.fork_rng(devices=[]):
        graph = exported(FreshlyMade().eval())
    names = {name for name, _ in graph.module.named_parameters()}
    assert {"conv1.bias", "conv2.bias", "fc1.bias", "fc2.bias"} <= names
    assert names <= set(initializers_of(graph))
    (norm,) = nodes_of(graph, "BatchNormalization")
    assert len(set(norm.input)) == 5
    assert [node.input[1] for node in nodes_of(graph, "Gemm")] == ["fc1.weight", "fc2.weight"]


def test_expression_written_twice_is_computed_twice():
    """A merged node would leave one of the two torch twins without quantizers."""
    graph = graph_of(SaidTwice)
    twins = [graph.fx_from_node[node.name] for node in nodes_of(graph, "Relu")]
    assert len(twins) == len(set(twins)) == 3


def test_layer_without_bias_is_exported_without_bias():
    graph = graph_of(PreActivation)
    assert [len(node.input) for node in nodes_of(graph, "Conv")] == [2, 2]


def test_parameter_that_only_its_results_stand_for_is_frozen():
    graph = graph_of(ComputedWeights)
    assert set(graph.parameter_from_initializer) == {"head.weight"}
    trainable = {name for name, _ in graph.module.named_parameters()}
    assert trainable == {"conv.bias", "head.weight", "head.bias"}


def test_operator_without_translation_is_named_with_its_module():
    with pytest.raises(ExportError) as caught:
        exported(seeded(Untranslatable))
    message = str(caught.value)
    assert message == (
        "the network cannot be exported to ONNX: stage.1: operator prims.bessel_i1e has no ONNX "
        "translation. Replace the operator by one that ONNX opset 21 has, or cut the network "
        "before it."
    )


def test_graph_too_large_for_one_file_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr("fdda_deploy.exporters.float_onnx.PROTO_LIMIT_BYTES", 1000)
    with pytest.raises(ExportError, match=r"the graph takes \d+ bytes, more than one ONNX file"):
        exported(seeded(SharedModule))
