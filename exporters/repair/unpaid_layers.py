"""R14: for a compact plan, layers run in float whose INT8 takes more bytes than it saves.

1. Layers whose inputs have one shape share the kernel that rounds those inputs. Where their
   weights together save less than its source is long (`compact.unpaid_layers`), they read the
   float tensor, with what its grid stood for put back, and their weights become floats: the same
   numbers.
2. Where no layer behind the network's own input would stay in INT8, all stay.
3. A tensor that its grid cuts off at the lowest integer (as in R13) keeps its pair, and with it
   those of its shape: the kernel is there anyway.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from fdda_deploy.exporters.compact import unpaid_layers
from fdda_deploy.exporters.repair.editing import GraphEdit
from fdda_deploy.exporters.repair.implied import float_source
from fdda_deploy.exporters.repair.layers import Layer, image_shapes, quantized_layers
from fdda_deploy.exporters.repair.nodes import label
from fdda_deploy.exporters.repair.record import Change, Repair
from fdda_deploy.exporters.rules.graph import Request


def _apply(graph: GraphEdit, request: Request) -> Iterator[Change]:
    if not request.rtx:
        return
    floats: dict[str, str] = {}
    for layer in _unpaid(graph):
        node, weight = layer.node, layer.node.input[1]
        if weight not in floats:
            floats[weight] = graph.add_constant(f"{weight}_float", layer.weight)
        source = float_source(graph, layer.quantize)
        graph.rewire(node, 0, source)
        graph.rewire(node, 1, floats[weight])
        yield Change(label(node), source, f"{layer.num_weights} weights, to float", False)
    graph.prune()


def _unpaid(graph: GraphEdit) -> list[Layer]:
    layers = quantized_layers(graph)
    shapes = image_shapes(graph)
    reads: dict[str, set[str]] = defaultdict(set)
    for layer in layers:
        reads[layer.source].add(layer.node.name)
    sizes = {layer.node.name: layer.num_weights for layer in layers}
    held = {shapes.get(tensor) for tensor in graph.notes.bounded}
    counted = [(tensor, names) for tensor, names in reads.items() if shapes.get(tensor) not in held]
    found = unpaid_layers(counted, shapes, sizes, graph.inputs)
    left = [layer for layer in layers if layer.node.name not in found]
    if all(layer.source in graph.inputs for layer in left):
        return []
    return [layer for layer in layers if layer.node.name in found]


REPAIR = Repair(
    "R14",
    (),
    "Compact plan: layers whose INT8 would make the plan larger run in float.",
    "One rounding less; rounding their inputs takes a kernel longer than what their weights save.",
    _apply,
    compact=True,
)
