"""Guard the sizes that torch.export took for fixed, and what it took for granted of the others."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.capture.exported.expressions import (
    Field,
    Path,
    Reader,
    conditions,
    size_of,
    spelled,
    spelled_condition,
    step,
)
from fxprune.capture.exported.torch_internals import guards_of
from fxprune.graph.example import Example
from fxprune.graph.own_nodes import guard_size

__all__ = ["Relied", "blank_of", "guard_sizes", "input_values", "relied_on"]

MOST = 100  # a program that relies on more than that is better exported for fewer dynamic sizes
UNBOUNDED = 1 << 31  # from there on an upper bound is none
At = tuple[Path, int]  # a tensor among the arguments, and one of its dimensions


@dataclass(frozen=True)
class Relied:
    """What a program was exported for.

    names: of the arguments.  fixed: the sizes that it has as numbers.  conditions: what is to hold of the
    others, as Python expressions over `L['x'].size()[0]`.  lines: where the code is that relies on a
    condition, by its dump, or on a size, where that is known.
    """

    names: tuple[str, ...]
    fixed: dict[At, int]
    conditions: tuple[ast.expr, ...]
    lines: dict[str | At, str]

    def holds_for(self, example: Example) -> bool:
        """Return whether a call with these arguments meets all conditions."""
        tensors = _tensors(self.names, example)
        if any(tensors[path].shape[dim] != size for (path, dim), size in self.fixed.items()):
            return False
        return all(_holds(c, self.names, example) for c in self.conditions)

    def excludes(self, example: Example, batch: int) -> tuple[ast.expr, ...] | None:
        """Return what is not so for a batch size; None where that is about other sizes as well."""
        given, batched = blank_of(example).with_batch(batch), set(_batched(self.names, example))
        found = tuple(c for c in self.conditions if not _holds(c, self.names, given))
        only = batched.isdisjoint(self.fixed) and all(set(_sizes_in(c)) <= batched for c in found)
        return found if only else None

    def beyond(self, other: Relied) -> Relied:
        """Return what this one relies on and another does not."""
        known = {ast.dump(condition) for condition in other.conditions}
        fixed = {at: size for at, size in self.fixed.items() if other.fixed.get(at) != size}
        conditions = tuple(c for c in self.conditions if ast.dump(c) not in known)
        return replace(self, fixed=fixed, conditions=conditions)

    def or_else(self, other: Relied, example: Example, batch: int) -> Relied | None:
        """Return what to rely on where the program is right for what `other` was exported for as well.

        batch: the size of batch of `other`, which this one excludes.  None where `other` relies on more than
        this one, or what excludes that size is about other sizes as well.
        """
        excluding = self.excludes(example, batch)
        if not excluding:
            return None
        batched = _batched(self.names, example)
        kept = [c for c in self.conditions if c not in excluding]
        fixed = {at: size for at, size in other.fixed.items() if at not in batched}
        needed = [c for c in other.conditions if not _is_known(c, set(other.fixed))]
        own = [c for c in needed if ast.dump(c) not in {ast.dump(k) for k in kept}]
        if not fixed.items() <= self.fixed.items() or any(not set(_sizes_in(c)) <= set(batched) for c in own):
            return None
        own += [_parsed(f"{_read(at)} == {other.fixed[at]}") for at in batched if at in other.fixed]
        if not own:
            return replace(self, conditions=tuple(kept))
        either = _parsed(" or ".join(map(_all_of, (excluding, own))))
        if not _is_always((*excluding, *own), either, self.names, example):
            kept.append(either)
        where = next(filter(None, (self.lines.get(ast.dump(c), "") for c in excluding)), "")
        return replace(self, conditions=tuple(kept), lines={**self.lines, ast.dump(either): where})


def guard_sizes(graph: fx.Graph, relied: Relied) -> None:
    """Insert a guard for each size of an input that the program has as a number, and for each relation.

    Needs one placeholder for each argument of the example, in its order.

    Raises:
        NotImplementedError: it relies on what can't be checked, or on more than `MOST` relations.
    """
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    reader = Reader(graph, inputs[-1], dict(zip(relied.names, inputs, strict=True)))
    for (path, dim), size in relied.fixed.items():
        said = f"dimension {dim} of {spelled(path)}"
        where = relied.lines.get((path, dim), "")
        reader.call(guard_size, reader.size(path, dim), size, what=said, where=where)
    found = [c for c in relied.conditions if not _is_known(c, set(relied.fixed))]
    if len(found) > MOST:
        raise NotImplementedError(f"torch.export relies on {len(found)} relations between sizes")
    for condition in found:
        where = relied.lines.get(ast.dump(condition), "")
        said = spelled_condition(condition)
        reader.call(guard_size, reader.value(condition), True, what=said, where=where)


def relied_on(program: torch.export.ExportedProgram, names: Sequence[str], example: Example) -> Relied:
    """Return what a program relies on of the arguments that it was exported with."""
    shapes = dict(_input_shapes(program, names, example))
    pairs = list(_conditions(program, shapes))
    found = tuple(condition for condition, _ in pairs)
    lines: dict[str | At, str] = {ast.dump(condition): where for condition, where in pairs if where}
    fixed = {
        (path, dim): size
        for path, shape in shapes.items()
        for dim, size in enumerate(shape)
        if isinstance(size, int)
    }
    for condition in found:
        match condition:
            case ast.Compare(left=left, ops=[ast.Eq()], comparators=[ast.Constant(value=int(number))]):
                at = size_of(left)
                if at is not None:
                    fixed.setdefault(at, number)
                    lines[at] = lines.get(ast.dump(condition), "")
    return Relied(tuple(names), fixed, found, lines)


def _is_always(parts: Sequence[ast.expr], whole: ast.expr, names: Sequence[str], example: Example) -> bool:
    """Return whether a condition holds for every batch size; its parts compare one with numbers."""
    changes = {1}
    for part in parts:
        match part:
            case ast.Compare(left=left, ops=[_], comparators=[ast.Constant(value=int(number))]):
                if size_of(left) is None:
                    return False
                changes |= {number - 1, number, number + 1}
            case _:
                return False
    if len(set(_sizes_in(whole))) > 1:
        return False
    return all(_holds(whole, names, blank_of(example).with_batch(n)) for n in changes if n > 0)


def _all_of(conditions: Sequence[ast.expr]) -> str:
    return " and ".join(f"({ast.unparse(condition)})" for condition in conditions)


def _parsed(code: str) -> ast.expr:
    return ast.parse(code, mode="eval").body


def blank_of(example: Example) -> Example:
    """Return a call of the same sizes without numbers: what a program relies on is asked of it."""
    return example.map(lambda t: t.to("meta"))


def _holds(condition: ast.expr, names: Sequence[str], example: Example) -> bool:
    given = dict(zip(names, (*example.args, *example.kwargs.values()), strict=True))
    space = {"L": given, "torch": torch, "math": math}
    return bool(eval(ast.unparse(condition), space))  # what torch.export wrote


def _tensors(names: Sequence[str], example: Example) -> dict[Path, Tensor]:
    arguments = zip(names, (*example.args, *example.kwargs.values()), strict=True)
    leaves = (pair for name, value in arguments for pair in _leaves(name, value))
    return {path: leaf for path, leaf in leaves if isinstance(leaf, Tensor)}


def _batched(names: Sequence[str], example: Example) -> list[At]:
    """Return the dimensions that are the batch size."""
    blank = blank_of(example)
    some, others = (_tensors(names, blank.with_batch(n)) for n in (1, 2))
    return [
        (path, dim)
        for path, t in some.items()
        for dim in range(t.ndim)
        if t.shape[dim] != others[path].shape[dim]
    ]


def _input_shapes(
    program: torch.export.ExportedProgram, names: Sequence[str], example: Example
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


def _leaves(name: str, value: Any) -> list[tuple[Path, Any]]:
    found, _ = pytree.tree_flatten_with_path(value)

    def word(key: Any) -> Any:
        return Field(key.name) if hasattr(key, "name") else getattr(key, "key", getattr(key, "idx", None))

    return [((name, *map(word, keys)), leaf) for keys, leaf in found]


def _shapes(program: torch.export.ExportedProgram) -> list[Any]:
    """Return the shape of each leaf of the arguments; None for what is no tensor."""
    return [value.shape if isinstance(value, Tensor) else None for value in input_values(program)]


def input_values(program: torch.export.ExportedProgram) -> list[Any]:
    """Return what stands for each leaf of the arguments that a program was exported with."""
    own = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    return [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in own]


def _conditions(
    program: torch.export.ExportedProgram, shapes: dict[Path, Any]
) -> Iterator[tuple[ast.expr, str]]:
    """Yield what export must be able to rely on, relations of sizes and their ranges, and the user's line."""
    for code, where in guards_of(program):
        yield from ((condition, where) for condition in conditions(code))
    for path, shape in shapes.items():
        for dim, size in enumerate(shape):
            bounds = None if isinstance(size, int) else program.range_constraints.get(size.node.expr)
            if bounds is None:
                continue
            if bounds.lower > 1:
                yield _parsed(f"{_read((path, dim))} >= {bounds.lower}"), ""
            if bounds.upper < UNBOUNDED:
                yield _parsed(f"{_read((path, dim))} <= {bounds.upper}"), ""


def _read(at: At) -> str:
    (name, *keys), dim = at
    return f"L[{name!r}]" + "".join(map(step, keys)) + f".size()[{dim}]"


def _is_known(condition: ast.expr, fixed: set[At]) -> bool:
    """Return whether it is about sizes alone that are guarded as numbers."""
    found = [*_sizes_in(condition)]
    asked = [t for t in ast.walk(condition) if isinstance(t, ast.Attribute) and t.attr in ("size", "shape")]
    return len(asked) <= len(found) and fixed.issuperset(found)  # none that is spelled in another way


def _sizes_in(condition: ast.expr) -> Iterator[At]:
    for tree in ast.walk(condition):
        at = size_of(tree) if isinstance(tree, ast.expr) else None
        if at is not None:
            yield at
