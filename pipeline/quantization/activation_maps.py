"""Where in an image a network sees a class: class activation maps, and how far two are apart."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fdda_deploy.errors import ConfigError

_LINEAR = torch.ops.aten.linear.default
_POOLINGS = ("mean", "adaptive_avg_pool2d")
_TRANSPARENT = ("dropout", "reshape", "view", "flatten", "squeeze", "clone", "to", "alias")
"""Operators that change no value and no channel's place."""

Mapped = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""From images to logits ``(N, classes)``, the features before pooling ``(N, F, H, W)``, and the
classifier's weight as it multiplies them, ``(classes, F)``."""


def with_features(module: fx.GraphModule, name: str) -> Mapped:
    """Returns a network's forward with what a class activation map is made of; tensors are shared.

    Args:
        module: Float or quantized; its quantizers are those at the time of this call.
        name: What a message calls it.

    Raises:
        ConfigError: It does not end in global average pooling and a linear layer.
    """
    graph = copy.deepcopy(module.graph)
    output = next(node for node in graph.nodes if node.op == "output")
    logits = output.args[0]
    while isinstance(logits, tuple | list):
        logits = logits[0]
    linear = _behind(logits, lambda node: node.target is _LINEAR)
    pooled = None if linear is None else _behind(linear.args[0], _pools)
    if linear is None or pooled is None:
        raise ConfigError(
            f"{name}: student_cam_weight needs a network that ends in global average pooling and a "
            "linear layer, and this one does not. Set student_cam_weight = 0 under "
            "[synthesis.overrides]."
        )
    output.args = ((logits, pooled.args[0], linear.args[1]),)
    graph.set_codegen(fx.graph.CodeGen())  # plain tuples, whatever torch.export had fixed
    found: Mapped = fx.GraphModule(module, graph)
    return found


def class_maps(features: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    """Returns ``M_y(h, w) = sum_k w_yk A_k(h, w)``, ``(N, H, W)`` (Zhou et al., CVPR 2016).

    Its mean over the positions is the logit of the class, less the bias.

    Args:
        features: A, ``(N, F, H, W)``.
        weight: w, ``(classes, F)``.
        classes: y, ``(N,)`` int64.
    """
    return torch.einsum("nk,nkhw->nhw", weight[classes], features)


def map_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns ``mean (M_S - M_T)^2 / mean M_T^2`` of each image, mean over images; 0 for twins.

    SynQ (ICLR 2025) aligns the two networks' class activation maps. Our reading: maps of the linear
    classifier instead of Grad-CAM's, so no second backward pass, and each image's error measured in
    its teacher's map, so that the weight means the same for any network.

    Args:
        student: ``(N, H, W)``.
        teacher: The same; takes no gradient.
    """
    gap = (student - teacher).square().mean((1, 2))
    size = teacher.square().mean((1, 2))
    return (gap / size.clamp_min(torch.finfo(size.dtype).tiny)).mean()


def _behind(node: object, wanted: Callable[[fx.Node], bool]) -> fx.Node | None:
    """Returns the wanted node that ``node`` shows, through quantizers and views; None if other."""
    while isinstance(node, fx.Node) and node.op in {"call_function", "call_module"}:
        if node.op == "call_function":
            if wanted(node):
                return node
            if _operator(node) not in _TRANSPARENT:
                return None
        node = node.args[0]
    return None


def _pools(node: fx.Node) -> bool:
    """Whether a node averages each channel over the whole image."""
    if _operator(node) not in _POOLINGS:
        return False
    where: Any = node.args[1]
    if _operator(node) == "mean":
        return isinstance(where, list | tuple) and sorted(axis % 4 for axis in where) == [2, 3]
    return list(where) == [1, 1]


def _operator(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0]
