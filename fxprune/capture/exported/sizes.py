"""Guard the sizes that torch.export took for fixed, and what it took for granted of the others."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.capture.exported.expressions import (
    Path,
    Reader,
    conditions,
    size_of,
    spelled,
    spelled_condition,
)
from fxprune.graph.example import Example
from fxprune.graph.own_nodes import guard_size

__all__ = ["guard_sizes", "holds_for", "input_shapes"]

MOST = 100  # a program that relies on more than that is better exported for fewer dynamic sizes
UNBOUNDED = 1 << 31


def guard_sizes(
    graph: fx.Graph, program: torch.export.ExportedProgram, names: list[str], example: Example
) -> None:
    """Insert a guard for each size of an input that the program has as a number, and for each relation.

    Needs one placeholder for each argument of the example, in its order, of the name in `names`.

    Raises:
        NotImplementedError: it relies on what can't be checked, or on more than `MOST` relations.
    """
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    reader = Reader(graph, inputs[-1], dict(zip(names, inputs, strict=True)))
    fixed = _fixed(program, names, example)
    for (path, dim), size in fixed.items():
        said = f"dimension {dim} of {spelled(path)}"
        reader.call(guard_size, reader.size(path, dim), size, what=said)
    found = [c for c in _conditions(program, names, example) if not _is_known(c, set(fixed))]
    if len(found) > MOST:
        raise NotImplementedError(f"torch.export relies on {len(found)} relations between sizes")
    for condition in found:
        reader.call(guard_size, reader.value(condition), True, what=spelled_condition(condition))


def holds_for(program: torch.export.ExportedProgram, names: list[str], example: Example) -> bool:
    """Say whether a call with these arguments meets everything that the program relies on."""
    given = dict(zip(names, (*example.args, *example.kwargs.values()), strict=True))
    leaves = {path: leaf for name, value in given.items() for path, leaf in _leaves(name, value)}
    for path, shape in input_shapes(program, names, example):
        sizes = zip(leaves[path].shape, shape, strict=True)
        if any(isinstance(size, int) and here != size for here, size in sizes):
            return False
    space = {"L": given, "torch": torch, "math": math}
    return all(
        eval(ast.unparse(c), space)  # what torch.export wrote
        for c in _conditions(program, names, example)
    )


def input_shapes(
    program: torch.export.ExportedProgram, names: list[str], example: Example
) -> Iterator[tuple[Path, Any]]:
    """Yield the path of each tensor of the arguments, and its shape of numbers and symbols."""
    arguments = zip(names, (*example.args, *example.kwargs.values()), strict=True)
    leaves = [leaf for name, value in arguments for leaf in _leaves(name, value)]
    shapes = _shapes(program)
    if len(shapes) != len(leaves):
        raise NotImplementedError("torch.export returns other inputs than it was given")
    for (path, value), shape in zip(leaves, shapes, strict=True):
        if isinstance(value, Tensor) and shape is not None:
            yield path, shape


def _fixed(
    program: torch.export.ExportedProgram, names: list[str], example: Example
) -> dict[tuple[Path, int], int]:
    """Return the sizes that the program has as numbers."""
    found = {
        (path, dim): size
        for path, shape in input_shapes(program, names, example)
        for dim, size in enumerate(shape)
        if isinstance(size, int)
    }
    for condition in _conditions(program, names, example):
        match condition:
            case ast.Compare(left=left, ops=[ast.Eq()], comparators=[ast.Constant(value=int(number))]):
                at = size_of(left)
                if at is not None:
                    found.setdefault(at, number)
    return found


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


def _conditions(
    program: torch.export.ExportedProgram, names: list[str], example: Example
) -> Iterator[ast.expr]:
    """Yield what export found that it must be able to rely on: relations of sizes, and their ranges."""
    for code in getattr(program, "_guards_code", None) or ():
        yield from conditions(code)
    for path, shape in input_shapes(program, names, example):
        for dim, size in enumerate(shape):
            bounds = None if isinstance(size, int) else program.range_constraints.get(size.node.expr)
            if bounds is None:
                continue
            read = f"L[{path[0]!r}]" + "".join(f"[{key!r}]" for key in path[1:]) + f".size()[{dim}]"
            if bounds.lower > 1:
                yield from conditions(f"{read} >= {bounds.lower}")
            if bounds.upper < UNBOUNDED:
                yield from conditions(f"{read} <= {bounds.upper}")


def _is_known(condition: ast.expr, fixed: set[tuple[Path, int]]) -> bool:
    """Say whether it is about sizes alone that are guarded as numbers."""
    sizes = [found for tree in ast.walk(condition) if (found := _size(tree)) is not None]
    return set(sizes) <= fixed


def _size(tree: ast.AST) -> tuple[Path, int] | None:
    return size_of(tree) if isinstance(tree, ast.expr) else None
