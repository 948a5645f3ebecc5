"""Layer by layer: torch fed with what ONNX Runtime computed, so that each layer stands alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from parity_networks import Chain
from torch import Tensor, fx

from fdda_deploy.pipeline.quantization.fake_quant import ActivationQuantizer, quantize

Array = np.ndarray


@dataclass(frozen=True)
class Difference:
    """How one tensor differs when both sides computed it from the same inputs.

    Attributes:
        tensor: ONNX name.
        count: Elements.
        steps: Largest difference between two integers.
        flips_by_image: ``(N,)``, elements whose integers differ.
    """

    tensor: str
    count: int
    steps: int
    flips_by_image: Array

    @property
    def flips(self) -> int:
        """Elements whose integers differ."""
        return int(self.flips_by_image.sum())


def run_onnx(model: onnx.ModelProto, x: Tensor) -> dict[str, Array]:
    """Returns every output of the graph as it is written, optimizations off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": x.numpy()}), strict=True))


def showing(model: onnx.ModelProto, tensors: dict[str, int]) -> onnx.ModelProto:
    """Returns the graph with more outputs; ``tensors`` maps names to element types."""
    result = onnx.ModelProto.FromString(model.SerializeToString())
    known = {output.name for output in result.graph.output}
    for name, kind in tensors.items():
        if name not in known:
            result.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return result


def integer_differences(chain: Chain, x: Tensor) -> list[Difference]:
    """Returns one entry per quantized activation, each layer fed with ONNX Runtime's values."""
    points = chain.network.placement.activations
    unsigned = chain.network.placement.target == "ort-cpu"
    kind = TensorProto.UINT8 if unsigned else TensorProto.INT8
    wanted = {f"{p.name}_quantized": kind for p in points}
    wanted |= {f"{p.name}_dequantized": TensorProto.FLOAT for p in points}
    seen = run_onnx(showing(chain.model, wanted), x)
    grids = chain.network.activation_qparams()
    if not unsigned:  # biases shifted the value to where the zero-point is 0
        for tensor, grid in grids.items():
            seen[f"{tensor}_dequantized"] -= np.float32(grid.zero_point) * grid.scale
    tensor_of = {id(q): tensor for tensor, q in chain.network.activation_quantizers.items()}
    walk = _FedAtQuantizers(chain.network.graph_module, tensor_of, seen)
    with torch.no_grad():
        walk.run(x)
    assert set(walk.integers) == {point.name for point in points}
    zeros = {t: grids[t].zero_point + (128 if unsigned else 0) for t in walk.integers}
    return [
        _difference(t, walk.integers[t], seen[f"{t}_quantized"].astype(np.int16) - zeros[t])
        for t in walk.integers
    ]


def float_differences(chain: Chain, x: Tensor) -> Iterator[tuple[str, float]]:
    """Yields the relative L2 difference of every float tensor, each node fed with ONNX's values."""
    float_tensors = {
        tensor: fx_name
        for tensor, fx_name in chain.graph.fx_from_tensor.items()
        if tensor != "input"
    }
    seen = run_onnx(showing(chain.model, dict.fromkeys(float_tensors, TensorProto.FLOAT)), x)
    twins = {fx_name: seen[tensor] for tensor, fx_name in float_tensors.items()}
    walk = _FedAtNodes(chain.network.graph_module, twins)
    with torch.no_grad():
        walk.run(x)
    assert set(walk.differences) == set(twins)
    yield from walk.differences.items()


class _FedAtQuantizers(fx.Interpreter):
    """Notes the steps from zero that torch finds, and goes on with ONNX Runtime's values."""

    def __init__(
        self, module: fx.GraphModule, tensor_of: dict[int, str], seen: dict[str, Array]
    ) -> None:
        super().__init__(module)
        self.integers: dict[str, Array] = {}
        self._tensor_of = tensor_of
        self._seen = seen

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if not isinstance(module, ActivationQuantizer):
            return super().call_module(target, args, kwargs)
        tensor, grid = self._tensor_of[id(module)], module.qparams
        assert grid is not None
        steps = quantize(args[0], module.scale, grid.first_step, grid.last_step)
        self.integers[tensor] = steps.numpy()
        return torch.from_numpy(self._seen[f"{tensor}_dequantized"]).reshape(args[0].shape)


class _FedAtNodes(fx.Interpreter):
    """Compares each tensor that has an ONNX twin, and goes on with the twin's values."""

    def __init__(self, module: fx.GraphModule, twins: dict[str, Array]) -> None:
        super().__init__(module)
        self.differences: dict[str, float] = {}
        self._twins = twins

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name not in self._twins:
            return result
        twin = torch.from_numpy(self._twins[n.name]).reshape(result.shape)
        norm = float(twin.double().norm())
        self.differences[n.name] = float((result - twin).double().norm()) / max(norm, 1e-12)
        return twin


def _difference(tensor: str, ours: Array, theirs: Array) -> Difference:
    steps = np.abs(ours.reshape(theirs.shape).astype(np.int16) - theirs.astype(np.int16))
    by_image = (steps > 0).reshape(len(steps), -1).sum(axis=1)
    return Difference(tensor, steps.size, int(steps.max()), by_image)


def relative_l2(ours: Array, theirs: Array) -> float:
    """Returns ``||ours - theirs|| / ||theirs||``."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
