"""Take numbers of a graph apart: `x.shape[1] * 16`, `(n - 1) ** 0.5`; what they read, and what is written."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxprune.graph.nests import Value
from fxprune.graph.op_names import op_name
from fxprune.graph.size_reads import ALL, size_read

__all__ = [
    *("Factor", "Place", "Written", "factors_of", "is_number", "leaves_of", "made_anew", "number_of"),
    *("operands_of", "root_of"),
]

Place = tuple[fx.Node, int | str]  # an argument of a node

_ROOTS = {math.sqrt, getattr(torch, "sym_sqrt", math.sqrt)}
_CASTS = {float, int, torch.sym_float, torch.sym_int}


@dataclass(frozen=True)
class Written:
    """A number that the graph holds, and where."""

    place: Place
    value: float


@dataclass(frozen=True)
class Factor:
    """A factor of a number, and the power that it has there.

    reads: tensors and dimensions whose sizes it is made of.
    written: numbers that it is made of; where there are no reads, itself.
    """

    value: float
    power: float
    reads: tuple[tuple[fx.Node, int], ...] = ()
    written: tuple[Written, ...] = ()


def number_of(value: object) -> float | None:
    """Return what an argument is, if it is a number, or a node that gives one."""
    if isinstance(value, fx.Node):
        value = value.meta.get("val")
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_real else None  # type: ignore[return-value]


def is_number(value: object) -> bool:
    return number_of(value) is not None


def factors_of(number: object, place: Place, power: float = 1.0) -> Iterator[Factor]:
    """Take a number apart into its factors."""
    value = number_of(number)
    if value is None or value == 0:
        return
    if not isinstance(number, fx.Node):
        yield Factor(abs(value), power, written=(Written(place, abs(value)),))
        return
    args, target = number.args, number.target
    if target in (operator.mul, operator.truediv):
        yield from factors_of(args[0], (number, 0), power)
        yield from factors_of(args[1], (number, 1), power if target is operator.mul else -power)
    elif target is operator.neg or (target in _CASTS and number_of(args[0]) == value):
        yield from factors_of(args[0], (number, 0), power)
    elif target in _ROOTS:
        yield from factors_of(args[0], (number, 0), power / 2)
    elif target is operator.pow and isinstance(args[1], (int, float)):
        yield from factors_of(args[0], (number, 0), power * args[1])
    else:
        reads, written = leaves_of(number)
        yield Factor(abs(value), power, reads, written)


def leaves_of(number: fx.Node) -> tuple[tuple[tuple[fx.Node, int], ...], tuple[Written, ...]]:
    """List the sizes that a number is read off, and the numbers that are written in it."""
    reads: dict[tuple[fx.Node, int], None] = {}
    written: dict[Place, Written] = {}
    front = [number]
    while front:
        node = front.pop()
        if (sizes := _sizes(node)) is not None:
            reads |= dict.fromkeys((sizes[0], d) for d in sizes[1])
            continue
        for i, arg in enumerate(node.args):
            if isinstance(arg, fx.Node):
                front.append(arg)
            elif (value := number_of(arg)) and node.target is not operator.getitem:
                written[node, i] = Written((node, i), abs(value))
    return tuple(reads), tuple(written.values())


def _sizes(node: fx.Node) -> tuple[fx.Node, list[int]] | None:
    """Return the tensor and the dimensions whose sizes a node is, or holds: `x.shape[1:]`."""
    read = size_read(node)
    if read is not None:
        tensor, dim = read
        dims = [*range(tensor.meta["val"].ndim)]
        return tensor, dims if dim is None or dim == ALL else [dims[dim]]
    if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return None
    shape, index = _sizes(node.args[0]), node.args[1]
    if shape is None or not isinstance(index, (int, slice)):
        return None
    return shape[0], shape[1][index] if isinstance(index, slice) else [shape[1][index]]


def made_anew(
    number: object,
    place: Place,
    told: Callable[[Place], float | None],
    read: Callable[[fx.Node], Value],
    call: Callable[[fx.Node, tuple[Value, ...]], Value],
) -> Value:
    """Compute a number anew.

    told: what stands in an argument in place of the number written there, if another does.
    read: what a node that reads sizes of a tensor gives now.
    call: what another node gives of other arguments.
    """
    if (other := told(place)) is not None:
        return other
    if not isinstance(number, fx.Node) or isinstance(number.meta.get("val"), Tensor):
        return number
    if size_read(number) is not None:
        return read(number)
    args = tuple(made_anew(arg, (number, i), told, read, call) for i, arg in enumerate(number.args))
    return call(number, args)


def operands_of(
    node: fx.Node, *names: str, known: Sequence[str] = ("input", "other", "self")
) -> list[tuple[int | str, object]]:
    """List the operands of an elementwise call, by where they stand; other names are of other calls."""
    named = [(name, value) for name, value in node.kwargs.items() if name in (names or known)]
    return [*enumerate(node.args), *named]


# Ops that return all of the tensor that they are given, laid out or held otherwise.
_WHOLE = {
    *("contiguous", "clone", "to", "_to_copy", "type_as", "float", "double", "lift_fresh_copy", "detach"),
    *("view", "reshape", "permute", "transpose", "expand", "squeeze", "unsqueeze", "flatten", "unflatten"),
    *("t", "mT", "alias", "view_as", "expand_as", "movedim", "swapaxes", "_unsafe_view", "ravel"),
}


def root_of(node: fx.Node) -> fx.Node:
    """Return the tensor that a node is another layout of, or a cast."""
    while node.op in ("call_function", "call_method") and node.args and isinstance(node.args[0], fx.Node):
        name = op_name(node.target)
        if name == "getattr":
            name = str(node.args[1])
        if name.rstrip("_") not in _WHOLE and not (name == "getitem" and _is_whole(node.args[1])):
            break
        node = node.args[0]
    return node


def _is_whole(index: object) -> bool:
    """Does an index take everything, and at most add dimensions?"""
    places = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is ... or p == slice(None) for p in places)
