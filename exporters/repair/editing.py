"""One ONNX graph under repair: look-ups that follow every edit, and edits that keep it whole.

Tensors that the bodies of If, Loop and Scan read count as graph outputs: they are never renamed,
and what makes them is never taken out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fdda_deploy.errors import ExportError
from fdda_deploy.exporters.repair.nodes import (
    attribute,
    captured,
    copy_of,
    declared_type,
    drop_untrue_types,
    unused,
)
from fdda_deploy.exporters.repair.notes import Notes
from fdda_deploy.exporters.rules.shapes import Shape, tensor_types

Array = npt.NDArray[Any]
Reader = tuple[onnx.NodeProto, int]


class GraphEdit:
    """A model's main graph with look-ups and edits; call `finish` to write them back.

    Args:
        model: Changed in place by `finish`.

    Attributes:
        notes: What repairs found out about it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.notes = Notes()
        self.reload(model)

    def reload(self, model: onnx.ModelProto) -> None:
        """Starts over on another model."""
        self.model = model
        self.nodes = [copy_of(node) for node in model.graph.node]
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = {value.name for value in model.graph.input} - set(self._initializers)
        self.pinned = {value.name for value in model.graph.output}
        self.pinned |= {name for node in self.nodes for name in captured(node)}
        self._names = set(self._initializers) | self.inputs | self.pinned
        self._names |= {name for node in self.nodes for name in node.output}
        self._node_names = {node.name for node in self.nodes}
        self._producers: dict[str, onnx.NodeProto] = {}
        self._readers: dict[str, list[Reader]] = {}
        self._stale = True
        self._dead_before = {id(node) for node in self._dead_nodes()}
        self._unused_before = set(self._initializers) - self._used()
        self._touched = False

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """Returns the node that makes ``tensor``, None for inputs and initializers."""
        self._index()
        return self._producers.get(tensor)

    def readers(self, tensor: str) -> list[Reader]:
        """Returns (node, input index) of each node that reads ``tensor``."""
        self._index()
        return list(self._readers.get(tensor, ()))

    def of_type(self, *op_types: str) -> list[onnx.NodeProto]:
        """Returns the nodes of the standard domain with one of these types, in graph order."""
        wanted = set(op_types)
        return [n for n in self.nodes if n.op_type in wanted and n.domain in {"", "ai.onnx"}]

    def tensor(self, name: str) -> TensorProto | None:
        """Returns a constant from an initializer or a Constant node, also behind Identity."""
        seen: set[str] = set()
        while name not in self._initializers:
            node = self.producer(name)
            if node is None or name in seen:
                return None
            if node.op_type == "Constant":
                values = [a.t for a in node.attribute if a.name == "value"]
                return values[0] if values else None
            if node.op_type != "Identity" or not node.input:
                return None
            seen.add(name)
            name = node.input[0]
        return self._initializers[name]

    def constant(self, name: str) -> Array | None:
        """Returns the value of a constant tensor; None where it is none or cannot be read."""
        tensor = self.tensor(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        try:
            return np.asarray(numpy_helper.to_array(tensor))
        except (ValueError, TypeError, KeyError, OverflowError, AttributeError, IndexError):
            return None  # damaged; the check reports it

    def integer_type(self, tensor: str) -> int | None:
        """Returns the ONNX element type of a quantized ``tensor``, as far as the graph says."""
        seen: set[str] = set()
        while tensor not in seen:
            seen.add(tensor)
            held = self.tensor(tensor)
            if held is not None:
                return int(held.data_type)
            node = self.producer(tensor)
            if node is None:
                return declared_type(self.model, tensor)
            if node.op_type == "QuantizeLinear":
                return quantized_type(self, node)
            if not node.input:
                return None
            tensor = node.input[0]
        return None

    def shapes(self) -> dict[str, Shape]:
        """Returns what is known of the shape of each tensor, as the graph is now."""
        model = onnx.ModelProto(ir_version=self.model.ir_version)
        model.opset_import.extend(self.model.opset_import)
        graph = model.graph
        graph.name = self.model.graph.name
        for field in ("input", "output", "initializer"):
            getattr(graph, field).extend(getattr(self.model.graph, field))
        graph.node.extend(self._sorted())
        return tensor_types(model)[1]

    def add_constant(self, hint: str, value: Array) -> str:
        """Adds an initializer; returns its name, which starts with ``hint`` and is new."""
        name = self.fresh(hint)
        self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        self._initializers[name] = self.model.graph.initializer[-1]
        self._touched = True
        return name

    def add_node(
        self, op_type: str, inputs: Sequence[str], output: str, *, name: str = "", **attributes: Any
    ) -> onnx.NodeProto:
        """Adds a node of the standard domain that makes ``output``; `finish` finds its place.

        Without a name it takes its output's: names are part of a plan, and cost bytes there.
        """
        name = unused(name or output, self._node_names)
        node = helper.make_node(op_type, list(inputs), [output], name=name, **attributes)
        self.nodes.append(node)
        self._touched = True
        if not self._stale:
            self._producers[output] = node
            for index, tensor in enumerate(inputs):
                self._readers.setdefault(tensor, []).append((node, index))
        return node

    def fresh(self, hint: str) -> str:
        """Returns a name that nothing has yet: ``hint``, or ``hint`` and a number."""
        return unused(hint, self._names)

    def rewire(self, reader: onnx.NodeProto, index: int, tensor: str) -> None:
        """Lets one input of ``reader`` read ``tensor``."""
        self._index()
        old = self._readers.get(reader.input[index], [])
        old[:] = [(node, at) for node, at in old if node is not reader or at != index]
        self._readers.setdefault(tensor, []).append((reader, index))
        reader.input[index] = tensor
        self._touched = True

    def append_input(self, reader: onnx.NodeProto, tensor: str) -> None:
        """Gives ``reader`` one more input."""
        reader.input.append(tensor)
        self._changed()

    def redirect(self, old: str, new: str, *, but: onnx.NodeProto | None = None) -> None:
        """Lets every reader of ``old`` except ``but`` read ``new``."""
        for node, index in self.readers(old):
            if node is not but:
                self.rewire(node, index, new)

    def rename_output(self, old: str, new: str) -> None:
        """Renames a tensor that a node makes, there and at every reader."""
        node = self.producer(old)
        assert node is not None, old
        self.redirect(old, new)
        node.output[list(node.output).index(old)] = new
        self._names.add(new)
        self._changed()

    def name_after(self, node: onnx.NodeProto, hint: str) -> None:
        """Names a node and its first output ``hint``; an output that others need keeps its name."""
        if node.output[0] not in self.pinned:
            self.rename_output(node.output[0], self.fresh(hint))
        self._node_names.discard(node.name)
        node.name = unused(hint, self._node_names)

    def remove(self, node: onnx.NodeProto) -> None:
        """Takes a node out; whatever read its outputs must read something else by now."""
        self.nodes = [other for other in self.nodes if other is not node]
        self._node_names.discard(node.name)
        self._changed()

    def prune(self) -> None:
        """Takes out every node that an edit left unread."""
        while dead := [n for n in self._dead_nodes() if id(n) not in self._dead_before]:
            gone = {id(node) for node in dead}
            self.nodes = [node for node in self.nodes if id(node) not in gone]
            self._changed()

    def finish(self) -> onnx.ModelProto:
        """Writes the edits back: sorted, without what they left unread. Returns the model.

        Raises:
            ExportError: The nodes form a circle.
        """
        graph = self.model.graph
        if not self._touched:
            return self.model
        self.prune()
        ordered = self._sorted()
        del graph.node[:]
        graph.node.extend(ordered)
        unread = {tensor.name for tensor in graph.initializer} - self._used() - self._unused_before
        for entries in (graph.initializer, graph.input):  # old IRs list initializers twice
            for index in reversed(range(len(entries))):
                if entries[index].name in unread:
                    del entries[index]
        drop_untrue_types(graph)
        return self.model

    def touch(self) -> None:
        """Says that a node's attributes or domain were changed, its inputs and outputs not."""
        self._touched = True

    def _changed(self) -> None:
        self._stale = self._touched = True

    def _index(self) -> None:
        if not self._stale:
            return
        self._producers = {name: node for node in self.nodes for name in node.output if name}
        readers: dict[str, list[Reader]] = defaultdict(list)
        for node in self.nodes:
            for index, name in enumerate(node.input):
                if name:
                    readers[name].append((node, index))
        self._readers = readers
        self._stale = False

    def _used(self) -> set[str]:
        return self.pinned | {name for node in self.nodes for name in node.input if name}

    def _dead_nodes(self) -> list[onnx.NodeProto]:
        used = self._used()
        return [node for node in self.nodes if used.isdisjoint(node.output)]

    def _sorted(self) -> list[onnx.NodeProto]:
        """Returns the nodes, each behind what it reads, otherwise in their old order."""
        self._index()
        done: set[int] = set()
        waiting: set[int] = set()
        ordered: list[onnx.NodeProto] = []
        for start in self.nodes:
            stack = [start]
            while stack:
                node = stack[-1]
                needed = (self._producers.get(n) for n in (*node.input, *captured(node)))
                missing = [n for n in needed if n is not None and id(n) not in done]
                if id(node) in done or not missing:
                    stack.pop()
                    if id(node) not in done:
                        done.add(id(node))
                        ordered.append(node)
                elif any(id(n) in waiting for n in missing):
                    raise ExportError(
                        f"{node.name or node.op_type}: its inputs depend on its own output. "
                        "Export the model again."
                    )
                else:
                    waiting.add(id(node))
                    stack += missing
        return ordered


def quantized_type(graph: GraphEdit, node: onnx.NodeProto) -> int | None:
    """Returns the ONNX element type of the integers that a Q makes or a DQ reads."""
    if len(node.input) > 2 and node.input[2]:
        held = graph.tensor(node.input[2])
        return None if held is None else int(held.data_type)
    if node.op_type == "DequantizeLinear":
        return graph.integer_type(node.input[0]) if node.input else None
    wanted = attribute(node, "output_dtype")
    return int(wanted) if isinstance(wanted, int) and wanted else int(TensorProto.UINT8)
