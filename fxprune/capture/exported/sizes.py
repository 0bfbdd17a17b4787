"""Guard the sizes that torch.export took for fixed, and those of which it took a relation for granted."""

from __future__ import annotations

import ast
import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.graph.example import Example
from fxprune.graph.own_nodes import guard_size

__all__ = ["assumes_more", "guard_sizes"]


def assumes_more(program: torch.export.ExportedProgram) -> bool:
    """Does the program hold for some sizes of its dynamic dimensions only, beyond that several are equal?"""
    guards = [_equal_sizes(code) for code in _guards_of(program)]
    ranges = [r for symbol, r in program.range_constraints.items() if str(symbol).startswith("s")]
    return None in guards or any(r.lower > 2 or r.upper < 1 << 31 for r in ranges)


def guard_sizes(graph: fx.Graph, program: torch.export.ExportedProgram, example: Example) -> None:
    """Insert a guard for each dimension of an input that the program has as a number, and for equal ones.

    Needs one placeholder for each argument of the example, in its order.
    """
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    after = inputs[-1]
    named = _Reader(graph, after, {str(n.target): n for n in inputs})
    arguments = zip(inputs, (*example.args, *example.kwargs.values()), strict=True)
    leaves = [leaf for node, value in arguments for leaf in _leaves(str(node.target), value)]
    shapes = _shapes(program)
    if len(shapes) != len(leaves):
        raise NotImplementedError("torch.export returns other inputs than it was given")
    for (path, value), shape in zip(leaves, shapes, strict=True):
        if not isinstance(value, Tensor) or shape is None:
            continue
        for dim, size in enumerate(shape):
            if isinstance(size, int):
                said = f"dimension {dim} of {_spelled(path)}"
                named.guard(named.size(path, dim), size, said)
    for code in _guards_of(program):
        pair = _equal_sizes(code)
        assert pair is not None  # `assumes_more` said so
        (a, i), (b, j) = pair
        same = named.call(operator.eq, named.size(a, i), named.size(b, j))
        said = f"dimension {i} of {_spelled(a)} == dimension {j} of {_spelled(b)}"
        named.guard(same, True, said)


Path = tuple[Any, ...]  # a parameter of forward, and keys inward


def _leaves(name: str, value: Any) -> list[tuple[Path, Any]]:
    found, _ = pytree.tree_flatten_with_path(value)

    def word(key: Any) -> Any:
        return getattr(key, "key", getattr(key, "idx", None))

    return [((name, *map(word, keys)), leaf) for keys, leaf in found]


def _shapes(program: torch.export.ExportedProgram) -> list[Any]:
    """Return the shape of each leaf of the arguments; None for what is no tensor."""
    own = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in own]
    return [n.meta["val"].shape if isinstance(n.meta.get("val"), Tensor) else None for n in nodes]


def _guards_of(program: torch.export.ExportedProgram) -> list[str]:
    """Return what export relies on, as Python expressions over `L['x'].size()[0]`."""
    return list(getattr(program, "_guards_code", None) or ())


def _equal_sizes(code: str) -> tuple[tuple[Path, int], tuple[Path, int]] | None:
    """Return the two sizes of `L['x'].size()[0] == L['y'].size()[0]`; None for any other expression."""
    tree = ast.parse(code, mode="eval").body
    if not isinstance(tree, ast.Compare) or len(tree.ops) != 1 or not isinstance(tree.ops[0], ast.Eq):
        return None
    left, right = _size(tree.left), _size(tree.comparators[0])
    return None if left is None or right is None else (left, right)


def _size(tree: ast.expr) -> tuple[Path, int] | None:
    match tree:
        case ast.Subscript(
            value=ast.Call(func=ast.Attribute(value=source, attr="size"), args=[]),
            slice=ast.Constant(value=int(dim)),
        ):
            path = _path(source)
            return None if path is None else (path, dim)
    return None


def _path(tree: ast.expr) -> Path | None:
    """Parse `L['x'][0]` to `("x", 0)`."""
    keys: list[Any] = []
    while isinstance(tree, ast.Subscript) and isinstance(tree.slice, ast.Constant):
        keys.append(tree.slice.value)
        tree = tree.value
    return tuple(reversed(keys)) if isinstance(tree, ast.Name) and tree.id == "L" and keys else None


def _spelled(path: Path) -> str:
    return str(path[0]) + "".join(f"[{key!r}]" for key in path[1:])


class _Reader:
    """Reads sizes at the entry of a graph, one node after the other."""

    def __init__(self, graph: fx.Graph, after: fx.Node, inputs: dict[str, fx.Node]) -> None:
        self.graph, self.after = graph, after
        self.of: dict[Path, fx.Node] = {(name,): node for name, node in inputs.items()}

    def call(self, target: Any, *args: Any, **words: Any) -> fx.Node:
        with self.graph.inserting_after(self.after):
            made = self.graph.call_method if isinstance(target, str) else self.graph.call_function
            self.after = made(target, args, words)
        return self.after

    def size(self, path: Path, dim: int) -> fx.Node:
        return self.call("size", self.value(path), dim)

    def value(self, path: Path) -> fx.Node:
        if path not in self.of:
            self.of[path] = self.call(operator.getitem, self.value(path[:-1]), path[-1])
        return self.of[path]

    def guard(self, value: fx.Node, expected: Any, what: str) -> None:
        self.call(guard_size, value, expected, what=what)
