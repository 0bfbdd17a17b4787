"""Find which rows of which weights a layer's weight is: a weight itself, a part of one, several joined."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass, replace

from torch import Tensor, fx

from fxprune.graph.op_names import op_name
from fxprune.graph.tensors import tensor_at
from fxprune.rules.calls import call_of, weight_name
from fxprune.rules.registry import DEFAULT_RULES

__all__ = ["Piece", "pieces_of", "reads_rows"]

_JOINS = ("cat", "concat")
_SPLITS = ("split", "split_with_sizes", "split_by_sizes", "chunk")


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows `start` to `stop` of a weight, by one of its names; or zeros of their shape in their place."""

    name: str
    tensor: Tensor
    start: int
    stop: int
    is_zero: bool = False

    def overlaps(self, other: Piece) -> bool:
        """Do both hold a row?  (A tensor may have two names.)"""
        same = self.tensor is other.tensor and not (self.is_zero or other.is_zero)
        return same and self.start < other.stop and other.start < self.stop


def pieces_of(weight: object, module: fx.GraphModule) -> list[Piece] | None:
    """List the pieces that a layer's weight is joined of, in order; None if it is computed otherwise."""
    name = weight_name(weight)
    if name is not None:
        tensor = tensor_at(module, name)
        return [Piece(name, tensor, 0, len(tensor))] if tensor.ndim else None
    if not isinstance(weight, fx.Node) or not weight.op.startswith("call"):
        return None
    if weight.target is operator.getitem:
        return _part(weight.args[0], weight.args[1], module)
    call = call_of(weight, module, DEFAULT_RULES)
    given = call.args[0] if call.args else None
    if call.plain_op == "zeros_like":
        pieces = pieces_of(given, module)
        return None if pieces is None else [replace(piece, is_zero=True) for piece in pieces]
    along = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else 0)
    if call.plain_op not in _JOINS or not isinstance(given, (list, tuple)) or along != 0:
        return None
    found = [pieces_of(part, module) for part in given]
    return None if None in found else [piece for pieces in found for piece in pieces or ()]


def _part(whole: object, index: object, module: fx.GraphModule) -> list[Piece] | None:
    """List the pieces of `w[a:b]`, or of the n-th part of a split one."""
    if isinstance(index, slice):
        pieces = pieces_of(whole, module)
        given = (index.start, index.stop, index.step)
        if pieces is None or not all(i is None or type(i) is int for i in given):
            return None
        start, stop, step = index.indices(sum(p.stop - p.start for p in pieces))
        return _cut(pieces, start, stop) if step == 1 else None
    if not isinstance(whole, fx.Node) or not whole.op.startswith("call") or type(index) is not int:
        return None
    call = call_of(whole, module, DEFAULT_RULES)
    pieces = pieces_of(call.args[0], module) if call.plain_op in _SPLITS and call.args else None
    if pieces is None:
        return None
    sizes = _sizes(call.plain_op, [*call.args[1:]], call.kwargs, sum(p.stop - p.start for p in pieces))
    if sizes is None or not -len(sizes) <= index < len(sizes):
        return None
    start = sum(sizes[: index % len(sizes)])
    return _cut(pieces, start, start + sizes[index])


def _sizes(op: str, args: list[object], named: dict[str, object], rows: int) -> list[int] | None:
    """Return how many rows each part of a split has, along the first dimension."""
    by = args[0] if args else next((v for name, v in named.items() if name != "dim"), None)
    along = args[1] if len(args) > 1 else named.get("dim", 0)
    if along != 0:
        return None
    if isinstance(by, (list, tuple)):
        return [*by] if all(type(n) is int for n in by) and sum(by) == rows else None
    if type(by) is not int or by < 1:
        return None
    size = -(-rows // by) if op == "chunk" else by
    return [min(size, rows - at) for at in range(0, rows, size)]


def _cut(pieces: list[Piece], start: int, stop: int) -> list[Piece]:
    """Return what lies between two rows of what is joined."""
    cut, at = list[Piece](), 0
    for piece in pieces:
        rows = piece.stop - piece.start
        first, last = max(start - at, 0), min(stop - at, rows)
        if first < last:
            cut.append(replace(piece, start=piece.start + first, stop=piece.start + last))
        at += rows
    return cut


def reads_rows(user: fx.Node, rows: Collection[Piece], module: fx.GraphModule) -> list[fx.Node] | None:
    """Return what reads some rows through a node that joins or parts weights; None if it computes."""
    if op_name(user.target) == "zeros_like":
        return []
    if op_name(user.target) in _SPLITS and all(u.target is operator.getitem for u in user.users):
        return [*user.users] if all(pieces_of(u, module) is not None for u in user.users) else None
    pieces = pieces_of(user, module)
    if pieces is None:
        return None
    return [*user.users] if any(p.overlaps(row) for p in pieces for row in rows) else []
