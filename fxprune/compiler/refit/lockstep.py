"""Run a graph over all calibration batches node by node: every batch waits where one layer is solved.

What a layer reads depends on all layers solved before it.  Starting anew for each would cost a pass a layer;
here every node runs once a batch, and what later nodes still need waits in memory, or in files where that
takes too much.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from fxprune.choose.importance.data import Batch

__all__ = ["Lockstep", "operand_of"]

IN_MEMORY = 1 << 30  # bytes of values that wait in memory; what is more waits in files

Values = dict[fx.Node, Any]


class Lockstep:
    """A graph on several batches, all of them before the same node."""

    def __init__(self, module: fx.GraphModule, batches: Sequence[Batch]) -> None:
        self._running = fx.Interpreter(module)
        self._nodes = list(module.graph.nodes)
        self._at = 0
        self._batches = batches
        self._by_name = {node.name: node for node in self._nodes}
        self._waiting = _Waiting(self._by_name, len(batches))
        self._values: Values = {}

    def read(self, name: str) -> Iterator[Any]:
        """Run every batch up to a node; gives what the node will read first, batch by batch."""
        end = self._place(name)
        for values in self._taken():
            self._run(values, self._at, end)
            yield self._computed(operand_of(self._nodes[end]), values)
        self._at = end

    def given(self, name: str) -> Iterator[tuple[Any, Any]]:
        """Run every batch through a node; gives what it read first and what it gave, batch by batch."""
        end = self._place(name)
        for values in self._taken():
            self._run(values, self._at, end)
            read = self._computed(operand_of(self._nodes[end]), values)
            self._run(values, end, end + 1)
            yield read, values[self._nodes[end]]
        self._at = end + 1

    def value(self, name: str, given: Mapping[str, Any] = MappingProxyType({})) -> Any:
        """Compute the value that a node has, or will have, for the batch at hand.

        Args:
            name: a node whose value still is needed, or that is yet to run.
            given: values of nodes, by name, to compute it from instead of their own.
        """
        values = {**self._values, **{self._by_name[name]: value for name, value in given.items()}}
        return self._computed(self._by_name[name], values)

    def _computed(self, node: fx.Node, values: Values) -> Any:
        if node not in values:
            for read in node.all_input_nodes:
                self._computed(read, values)
            self._running.env = values
            values[node] = self._running.run_node(node)
        return values[node]

    def _place(self, name: str) -> int:
        return next(i for i, n in enumerate(self._nodes) if i >= self._at and n.name == name)

    def _taken(self) -> Iterator[Values]:
        for i, batch in enumerate(self._batches):
            self._values = values = self._waiting.take(i)
            self._running.args_iter = iter(batch.arguments())
            yield values
            self._waiting.put(i, {n: v for n, v in values.items() if n.op != "get_attr"})

    @torch.no_grad()
    def _run(self, values: Values, start: int, end: int) -> None:
        self._running.env = values
        for node in self._nodes[start:end]:
            if node.op == "get_attr":
                continue  # tensors of the module: looked up where they are needed
            for held in node.all_input_nodes:
                self._computed(held, values)
            values[node] = self._running.run_node(node)
            for done in self._running.user_to_last_uses.get(node, ()):
                values.pop(done, None)


def operand_of(node: fx.Node) -> fx.Node:
    """Return what a layer's call reads first."""
    operand = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(operand, fx.Node)
    return operand


class _Waiting:
    """The values of every batch between two layers, in memory or in files."""

    def __init__(self, by_name: Mapping[str, fx.Node], count: int) -> None:
        self._by_name = by_name
        self._held: list[Values | None] = [{} for _ in range(count)]
        self._sizes = [0] * count
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def take(self, batch: int) -> Values:
        held, self._held[batch], self._sizes[batch] = self._held[batch], None, 0
        if held is not None:
            return held
        stored = torch.load(self._file(batch), weights_only=False)
        return {self._by_name[name]: value for name, value in stored.items()}

    def put(self, batch: int, values: Values) -> None:
        leaves = [leaf for leaf in tree_leaves(list(values.values())) if isinstance(leaf, Tensor)]
        size = sum(leaf.nbytes for leaf in leaves)
        if sum(self._sizes) + size <= IN_MEMORY:
            self._held[batch], self._sizes[batch] = values, size
        else:
            torch.save({node.name: value for node, value in values.items()}, self._file(batch))

    def _file(self, batch: int) -> Path:
        self._folder = self._folder or tempfile.TemporaryDirectory()
        return Path(self._folder.name) / f"{batch}.pt"
