"""In which precisions a captured graph computes what the model's code would: `.half()`, autocast.

Captured once more from a copy in another dtype, a graph shows what its code makes of dtypes.  A constant
that changes with the copy's is the model's own (`x.to(weight.dtype)`), one that stays is spelled by the code
(`x.to(torch.float32)`), and a limit of its numbers follows them (`torch.finfo(x.dtype).min`).  Where the
graphs differ otherwise, the code takes another way there, which the result refuses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.graph.copies import structural_copy
from fxprune.graph.example import Example
from fxprune.graph.own_nodes import guard_branch, guard_dtype, guard_precision, precision_of
from fxprune.graph.quiet import quiet_torch
from fxprune.graph.tensors import device_of, tensor_at

__all__ = [
    "AUTOCAST",
    "AUTOCAST_ON",
    "LIMITS",
    "Precisions",
    "own_dtype",
    "precisions_of",
    "tells_precision",
]

AUTOCAST_ON = (
    "it turns autocast on for a part of the model, whose result holds one precision: turn it on around the "
    "whole call instead"
)
# What code asks torch of the call that it is in.
AUTOCAST: tuple[str, ...] = ("is_autocast_enabled", "is_autocast_cpu_enabled")
AUTOCAST += ("get_autocast_dtype", "get_autocast_gpu_dtype", "get_autocast_cpu_dtype")
LIMITS = ("max", "min", "eps", "tiny", "smallest_normal", "resolution")
Capture = Callable[[nn.Module, Example], fx.Graph]
State = tuple[torch.dtype | None, torch.dtype | None]  # that of inputs and weights, and autocast's


@dataclass
class Precisions:
    """For which precisions a graph holds that was captured in one; not frozen, as each capture adds to it.

    taken: dtypes, and dtypes to which autocast casts, for which it does.  refused: for which it does not, nor
    refuses by itself.  where: the first line, known or not, whose operation is another there.
    """

    own: torch.dtype | None
    taken: list[State] = field(default_factory=list)
    refused: list[State] = field(default_factory=list)
    where: str = "some line"

    def note(self, graph: fx.Graph, state: State, capture: Callable[[], fx.Graph]) -> None:
        """Capture in another precision, and compare."""
        try:
            other = capture()
        except Exception:  # whatever user code raises on a dtype that it does not know
            self.refused.append(state)
            return
        differing, guarded = _difference(graph, other, self.own, state)
        if differing is None:
            self.taken.append(state)
        elif not guarded:
            self.refused.append(state)
            self.where = differing.meta.get("where") or self.where

    def guard(self, graph: fx.Graph, model: nn.Module, example: Example, *, autocast: bool) -> None:
        """Let a graph refuse all precisions but those that it holds for, if there is one it does not.

        autocast: is it known whether it holds under autocast?
        """
        if not self.refused:
            return
        inputs = [n for n in graph.nodes if n.op == "placeholder"]
        given = zip(inputs, (*example.args, *example.kwargs.values()), strict=False)
        floats = [n for n, value in given if isinstance(value, Tensor) and value.is_floating_point()]
        weights = [name for name, p in model.named_parameters() if p.is_floating_point()]
        at = inputs[-1].next

        def call(function: Any, *args: Any, **words: Any) -> fx.Node:
            with graph.inserting_before(at):
                return graph.call_function(function, args, words)

        with graph.inserting_before(at):
            weight = graph.get_attr(weights[0]) if weights else None
        dtypes = [call(getattr, node, "dtype") if node else None for node in (*floats[:1], weight)]
        dtypes = dtypes if floats else [None, *dtypes]
        device = call(getattr, floats[0] if floats else weight, "device") if autocast else None
        allowed = [
            (dtype if floats else None, dtype if weights else None, to)
            for dtype, to in [(self.own, None), *self.taken]
        ]
        call(guard_precision, call(precision_of, *dtypes, device), allowed, where=self.where)


def precisions_of(
    graph: fx.Graph, model: nn.Module, example: Example, capture: Capture, *, asked: bool, autocast: bool
) -> Precisions:
    """Capture a model in other precisions, and mark in a graph what its code says of dtypes.

    Sets `meta["literal_dtype"]` on nodes whose dtype the code spells, though it is the model's as well, and
    `meta["follows_dtype"]` on constants that have the dtype of the copy, and
    `meta["limits"]` on those that hold a limit of the numbers of a dtype that is the model's: its name.

    capture: captures a copy as the graph was.  asked: did the code ask for a dtype, so that each may differ?
    autocast: under autocast as well.
    """
    own = own_dtype(model, example)
    found = Precisions(own)
    if own is None:
        return found
    others = [d for d in (torch.bfloat16, torch.float16) if d is not own][: None if asked else 1]

    def in_dtype(dtype: torch.dtype) -> None:
        copy, given = _recast(model, example, own, dtype)
        found.note(graph, (dtype, None), lambda: capture(copy, given))
        _mark_following(graph, model, copy, (own, dtype))

    with quiet_torch():
        for dtype in others:
            in_dtype(dtype)
        for dtype in others if autocast else ():
            with torch.autocast(device_of(model).type, dtype):
                found.note(graph, (own, dtype), lambda: capture(structural_copy(model), example))
        if found.refused and own is not torch.float64:  # else it is as the others are
            in_dtype(torch.float64)
    return found


def _mark_following(
    graph: fx.Graph, model: nn.Module, copy: nn.Module, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """Mark constants that code makes in the dtype of weights or inputs: `torch.ones(5, dtype=self.dtype)`."""
    for node in graph.find_nodes(op="get_attr"):
        with contextlib.suppress(AttributeError):  # the other capture ended before, or has no such constant
            if tuple(tensor_at(m, str(node.target)).dtype for m in (model, copy)) == dtypes:
                node.meta["follows_dtype"] = True


def tells_precision(graph: fx.Graph, model: nn.Module, example: Example) -> bool:
    """Does a graph hold a constant that may be another in another precision?"""
    own = own_dtype(model, example)
    # (The resolution of float32 is the eps of many norms; code that asks for it is seen asking for a dtype.)
    names = [name for name in LIMITS if name != "resolution"]
    limits = {getattr(torch.finfo(own), name) for name in names} if own is not None else set()

    def tells(value: Any) -> bool:
        if isinstance(value, (tuple, list)):
            return any(map(tells, value))
        return value is own if isinstance(value, torch.dtype) else type(value) is float and value in limits

    return any(tells((*node.args, *node.kwargs.values())) for node in graph.nodes)


def own_dtype(model: nn.Module, example: Example) -> torch.dtype | None:
    """Return the dtype of the first input of real numbers; of the first weight, if no input has such."""
    inputs = pytree.tree_leaves((example.args, example.kwargs))
    tensors = (*(t for t in inputs if isinstance(t, Tensor)), *model.parameters())
    return next((t.dtype for t in tensors if t.is_floating_point()), None)


def _recast(
    model: nn.Module, example: Example, own: torch.dtype, dtype: torch.dtype
) -> tuple[nn.Module, Example]:
    """Copy a model and an example in another dtype; numbers of large tensors are not looked at.

    As a cast of the model does, it leaves alone what is neither a parameter nor a buffer.
    """
    casts = {id(t) for t in (*model.parameters(), *model.buffers())}
    casts |= {id(t) for t in pytree.tree_leaves((example.args, example.kwargs)) if isinstance(t, Tensor)}

    def cast(t: Tensor) -> Tensor:
        if t.dtype is not own or id(t) not in casts:
            return t
        other = t.detach().to(dtype) if t.numel() <= _FEW else torch.empty_like(t, dtype=dtype)
        return nn.Parameter(other, t.requires_grad) if isinstance(t, nn.Parameter) else other

    copy = structural_copy(model, cast)
    for name in [name for name in vars(copy) if name.startswith("_tensor_constant")]:
        delattr(copy, name)  # of the first capture
    return copy, example.map(cast)


_FEW = 1 << 12  # elements of a tensor whose numbers code may look at: a table of constants


def _difference(
    graph: fx.Graph, other: fx.Graph, own: torch.dtype | None, state: State
) -> tuple[fx.Node | None, bool]:
    """Return the first node that computes something else there, and whether a guard before it tells.

    Marks the nodes up to there.
    """
    place: dict[fx.Node, fx.Node] = {}
    guarded = False
    for node, same in zip(graph.nodes, other.nodes, strict=False):
        place[same] = node
        if node.target is guard_dtype and same.target is guard_dtype:
            guarded |= node.args[1] != same.args[1]
            continue
        words = _Words(node, same, own, *state, place)
        if node.op != same.op or node.target != same.target or not words.alike(_said(node), _said(same)):
            return node, guarded
    short, long = sorted((graph, other), key=lambda g: len(g.nodes))
    return (None if len(short.nodes) == len(long.nodes) else next(iter(graph.nodes))), guarded


def _said(node: fx.Node) -> Any:
    return node.args, node.kwargs if node.target is not guard_branch else {}


@dataclass(frozen=True)
class _Words:
    """The constants of a node, beside those of its counterpart in another precision."""

    node: fx.Node
    other: fx.Node
    own: torch.dtype | None
    dtype: torch.dtype | None
    autocast: torch.dtype | None
    place: dict[fx.Node, fx.Node]

    def alike(self, a: Any, b: Any) -> bool:
        if isinstance(a, fx.Node) or isinstance(b, fx.Node):
            return self.place.get(b) is a
        if isinstance(a, dict) and isinstance(b, dict):
            return a.keys() == b.keys() and all(self.alike(a[key], b[key]) for key in a)
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
            return len(a) == len(b) and all(map(self.alike, a, b))
        if isinstance(a, slice) and isinstance(b, slice):
            return self.alike((a.start, a.stop, a.step), (b.start, b.stop, b.step))
        if isinstance(a, torch.dtype):
            if a == b and a == self.own and self.own != self.dtype:
                self.node.meta["literal_dtype"] = True
            # Under autocast, values in between have another dtype: a cast to that rounds later in the result.
            return bool(a == b) or (a == self.own and b in (self.dtype, self.autocast))
        if type(a) is float and type(b) is float and a != b:
            return self._is_limit(a, b)
        return type(a) is type(b) and bool(a == b)

    def _is_limit(self, a: float, b: float) -> bool:
        """Are both the same limit of their dtypes' numbers?  Of an operand's, under autocast."""
        if self.own is None or self.dtype is None:
            return False
        dtype = self.autocast or self.dtype
        for name in LIMITS:
            if (getattr(torch.finfo(self.own), name), getattr(torch.finfo(dtype), name)) == (a, b):
                self.node.meta.setdefault("limits", {})[a] = name
                if self.autocast is not None:
                    self.node.meta["limits_of"] = self._operand_of(dtype)
                return self.autocast is None or self.node.meta["limits_of"] is not None
        return a != a and b != b

    def _operand_of(self, dtype: torch.dtype) -> fx.Node | None:
        """Find what has the own dtype here, and another there."""
        pairs = zip(self.node.all_input_nodes, self.other.all_input_nodes, strict=True)
        found = (a for a, b in pairs if (a.meta.get("dtype"), b.meta.get("dtype")) == (self.own, dtype))
        return next(found, None)
