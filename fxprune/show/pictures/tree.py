"""The graph as a tree of modules: rows in the order of execution, wires between them.

A row is a module, a layer or op inside it, a weight, or an input.  Size arithmetic and the picking of
one value out of several are left out: wires pass through them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import networkx as nx
import torch
from torch import fx

from fxprune.analysis.analysis import Analysis
from fxprune.graph.own_nodes import is_guard
from fxprune.rules.axes import Axis

__all__ = ["Row", "Tree", "collapsed", "opened_at_first"]

FIRST_SIGHT = 60  # rows that are seen before anything is opened


@dataclass(frozen=True)
class Row:
    """A line of the picture.

    kind: "module", "layer" (a module that the graph calls), "op", "weight", "input" or "output".
    name: what it is called where it stands (`qkv`); path: its full name (`blocks.0.attn.qkv`).
    what: the class of a module, the source line of an op.
    node: whose value the row is; of a module the last one inside it; of a layer's own weight None.
    where: the source line of a layer's or op's call, its file with the path.
    """

    index: int
    parent: int | None
    depth: int
    kind: str
    name: str
    path: str
    what: str = ""
    node: fx.Node | None = None
    axes: tuple[Axis, ...] = ()  # of a weight
    where: str = ""


@dataclass(frozen=True)
class Tree:
    """Rows in order, a parent before its children; wires between rows of ops and layers.

    wires: index of the row from, of the row to, and the node whose value passes.
    """

    rows: list[Row] = field(default_factory=list)
    wires: list[tuple[int, int, fx.Node]] = field(default_factory=list)

    @staticmethod
    def of(analysis: Analysis) -> Tree:
        return _Growing(analysis).grown()

    def name(self, row: Row) -> str:
        """Name a row, `blocks.0` for a block: a number says little alone."""
        if row.name.isdigit() and row.parent is not None:
            return f"{self.rows[row.parent].name}.{row.name}"
        return row.name

    def below(self, row: Row) -> Iterator[Row]:
        """Yield all rows inside a row: they follow it directly."""
        for other in self.rows[row.index + 1 :]:
            if other.depth <= row.depth:
                return
            yield other

    def above(self, row: Row) -> Iterator[Row]:
        """Yield the rows that a row stands in, innermost first."""
        while row.parent is not None:
            row = self.rows[row.parent]
            yield row


def opened_at_first(tree: Tree) -> set[int]:
    """Choose which rows are open at first: containers of containers, level by level, and layers."""
    containers = {r.parent for r in tree.rows if r.kind == "module" and r.parent is not None}
    opened = {r.index for r in tree.rows if r.kind == "layer"}
    for depth in range(max((r.depth for r in tree.rows), default=0)):
        level = {r.index for r in tree.rows if r.depth == depth and r.index in containers}
        if len(_visible(tree, opened | level)) > FIRST_SIGHT:
            break
        opened |= level
    return opened


def collapsed(tree: Tree, opened: set[int]) -> nx.MultiDiGraph:
    """Return the graph between what is seen when only `opened` rows are open.

    Nodes are row indices (attribute `row`); an edge carries the fx node whose value it is (`node`).
    """
    visible = _visible(tree, opened)
    graph = nx.MultiDiGraph()
    for i in visible:
        row = tree.rows[i]
        seen_through = row.kind == "module" and i in opened
        if not seen_through and not (row.kind == "weight" and row.node is None):
            graph.add_node(i, row=row)
    for source, target, node in tree.wires:
        a, b = _seen(tree, source, visible), _seen(tree, target, visible)
        if a != b and not graph.has_edge(a, b, key=node):
            graph.add_edge(a, b, key=node, node=node)
    return graph


def _visible(tree: Tree, opened: set[int]) -> set[int]:
    seen: set[int] = set()
    for row in tree.rows:
        if row.parent is None or (row.parent in seen and row.parent in opened):
            seen.add(row.index)
    return seen


def _seen(tree: Tree, index: int, visible: set[int]) -> int:
    while index not in visible:
        index = tree.rows[index].parent  # type: ignore[assignment]
    return index


class _Growing:
    """One walk over the graph; the open modules are a stack of rows."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.tree = Tree()
        self.stack: list[Row] = []
        self.row_of: dict[fx.Node, int] = {}
        self.value_of: dict[int, fx.Node] = {}  # of rows whose value is known when all in them is
        self.through: dict[fx.Node, list[fx.Node]] = {}  # a node without a row -> where its value is from
        self.classes = _classes(analysis.module)
        self.homes = _homes(analysis.module.graph)
        self.placed: set[str] = set()

    def grown(self) -> Tree:
        for node in self.analysis.module.graph.nodes:
            if node.op == "get_attr":
                continue  # stands beside its first user
            if node.op == "placeholder" and node.users and all(map(is_guard, node.users)):
                continue  # a plain argument, of which nothing is computed
            if node.op in ("placeholder", "output"):
                self._end(node)
            elif self._is_pick(node) or not self.analysis.axes.get(node):
                self.through[node] = [n for n in node.all_input_nodes if n.op != "get_attr"]
            else:
                self._call(node)
        rows = [replace(row, node=self.value_of.get(row.index, row.node)) for row in self.tree.rows]
        return replace(self.tree, rows=rows)

    def _end(self, node: fx.Node) -> None:
        self.stack.clear()
        kind = "input" if node.op == "placeholder" else "output"
        row = self._add(kind, str(node.target), node=node if kind == "input" else None)
        self.row_of[node] = row.index
        if kind == "output":
            source = next(iter(self._sources(node)), None)
            if source is not None:
                self.value_of[row.index] = source
            self._wire(node)

    def _call(self, node: fx.Node) -> None:
        layer = node.op == "call_module"
        self._enter(self.homes[node])
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source not in self.row_of:
                self._constant(source)
        where = node.meta.get("where") or ""
        if layer:
            path = str(node.target)
            row = self._add(
                "layer", path.rpartition(".")[2], path, self.classes.get(path, ""), node, where=where
            )
            self._weights(row, path)
        else:
            row = self._add("op", self._op(node), node.name, os.path.basename(where), node, where=where)
        self.row_of[node] = row.index
        for outer in self.stack:
            self.value_of[outer.index] = node
        self._wire(node)

    def _enter(self, parts: list[str]) -> None:
        """Close the modules that the next call is not in, open those that it is in."""
        paths = [".".join(parts[: i + 1]) for i in range(len(parts))]
        same = 0
        while same < min(len(paths), len(self.stack)) and self.stack[same].path == paths[same]:
            same += 1
        del self.stack[same:]
        for name, path in zip(parts[same:], paths[same:], strict=True):
            self.stack.append(self._add("module", name, path, self.classes.get(path, "")))

    def _constant(self, node: fx.Node) -> None:
        name = str(node.target)
        if name in self.placed or name not in self.analysis.weights:
            return
        self.placed.add(name)
        prefix = f"{self.stack[-1].path}." if self.stack else ""
        axes = self.analysis.weights[name]
        row = self._add("weight", name.removeprefix(prefix), name, node=node, axes=axes)
        self.row_of[node] = row.index

    def _weights(self, layer: Row, path: str) -> None:
        for name, axes in self.analysis.weights.items():
            if name.rpartition(".")[0] == path and name not in self.placed:
                self.placed.add(name)
                self._add("weight", name.rpartition(".")[2], name, axes=axes, parent=layer)

    def _wire(self, node: fx.Node) -> None:
        here = self.row_of[node]
        for source in self._sources(node):
            if source in self.row_of and self.row_of[source] != here:
                self.tree.wires.append((self.row_of[source], here, source))

    def _sources(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yield the nodes with a row whose tensors a node reads."""
        seen: set[fx.Node] = set()
        waiting = list(node.all_input_nodes)
        while waiting:
            source = waiting.pop(0)
            if source in seen:
                continue
            seen.add(source)
            if source in self.row_of:
                yield source
            elif self._is_pick(source):
                waiting += self.through.get(source, [])

    def _is_pick(self, node: fx.Node) -> bool:
        """Return whether a node picks one of several values: `unbind(x)[0]`."""
        return bool(self.analysis.axes.get(node)) and node not in self.analysis.steps and _getitem(node)

    def _op(self, node: fx.Node) -> str:
        step = self.analysis.steps.get(node)
        return step.call.op if step else getattr(node.target, "__name__", str(node.target))

    def _add(
        self,
        kind: str,
        name: str,
        path: str = "",
        what: str = "",
        node: fx.Node | None = None,
        *,
        axes: tuple[Axis, ...] = (),
        where: str = "",
        parent: Row | None = None,
    ) -> Row:
        parent = parent or (self.stack[-1] if self.stack else None)
        depth = parent.depth + 1 if parent else 0
        index = len(self.tree.rows)
        holder = parent.index if parent else None
        row = Row(index, holder, depth, kind, name, path or name, what, node, axes, where)
        self.tree.rows.append(row)
        return row


def _homes(graph: fx.Graph) -> dict[fx.Node, list[str]]:
    """Return the module that each call stands in, as the parts of its path.

    A graph that was pickled has lost what its nodes noted: then, what the calls around have in common.
    """
    known: dict[fx.Node, list[str]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            known[node] = str(node.target).split(".")[:-1]
        elif "module" in node.meta:
            known[node] = node.meta["module"].split(".") if node.meta["module"] else []
    after: dict[fx.Node, list[str]] = {}
    here: list[str] = []
    for node in reversed(graph.nodes):
        here = after[node] = known.get(node, here)
    homes: dict[fx.Node, list[str]] = {}
    here = []
    for node in graph.nodes:
        pairs = zip(here, after[node], strict=False)
        shared = [a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
        homes[node] = known.get(node, shared)
        here = known.get(node, here)
    return homes


def _classes(module: fx.GraphModule) -> dict[str, str]:
    """Map module paths to class names: of layers as they are, of the modules around them as captured."""
    out = {path: type(m).__name__ for path, m in module.named_modules() if type(m) is not torch.nn.Module}
    for node in module.graph.nodes:
        for path, kind in (node.meta.get("nn_module_stack") or {}).values():
            out.setdefault(path, getattr(kind, "__name__", str(kind).rpartition(".")[2]))
    return out


def _getitem(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") in ("getitem", "getattr")
