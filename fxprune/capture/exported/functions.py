"""Autograd functions under torch.export, which would decompose them: what they compute is marked.

The marker of `y = Round.apply(x, 2.0)` knows the call's tensors; a table has the function and the rest of its
arguments.  Markers become calls of the function, or `ForwardOnly`, in the plain graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils import _pytree as pytree

from fxprune.capture.autograd_functions import forward_of
from fxprune.graph.nests import PLAIN
from fxprune.graph.own_nodes import AutogradFunction, ForwardOnly
from fxprune.graph.process_lock import this_thread_only
from fxprune.graph.tensors import is_float

__all__ = ["Functions"]

_ADDED = "_function_"  # one of `ADDED`


@torch.library.custom_op("fxprune::function_marker", mutates_args=())
def _function_marker(result: Tensor, tensors: Sequence[Tensor], key: int) -> Tensor:
    """Mark what an autograd function makes of some tensors, while torch.export looks."""
    return result.clone()


@_function_marker.register_fake
def _(result: Tensor, tensors: Sequence[Tensor], key: int) -> Tensor:
    return torch.empty_like(result)


@dataclass(frozen=True)
class _Call:
    """A function, with its plain arguments (`Tensor` stands for a tensor).

    arguments: None where a graph can't hold the call.  passes_on: its result is, or is a view of, what it is
    given.
    """

    function: Any
    arguments: tuple[Any, ...] | None
    passes_on: bool


class Functions:
    """The autograd functions that a model's code applies, one entry for a function and its plain arguments.

    The same call has the same number in every export of the model.
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    @contextlib.contextmanager
    def traced(self) -> Iterator[None]:
        """Trace autograd functions as their forwards meanwhile, and mark their results."""
        apply = vars(torch.autograd.Function)["apply"]
        exporting_here = this_thread_only()

        def traced(function: Any, *args: Any) -> Any:
            if not exporting_here():
                return apply.__get__(None, function)(*args)
            if function.__name__.startswith("GeneratedBackwardFor_"):  # a custom op: called in the graph
                with _without_no_grad():
                    return forward_of(function, *args)
            return self._marked(function, args)

        torch.autograd.Function.apply = classmethod(traced)
        try:
            yield
        finally:
            torch.autograd.Function.apply = apply

    @contextlib.contextmanager
    def hidden(self, model: nn.Module) -> Iterator[None]:
        """Keep the modules that were added to a model out of it: its code may go through its children."""
        added = {n: m for n, m in model._modules.items() if n.startswith(_ADDED)}
        for name in added:
            del model._modules[name]
        try:
            yield
        finally:
            model._modules.update(added)

    def call_in(self, graph: fx.Graph, model: nn.Module) -> None:
        """Replace the markers in a graph by calls, of modules that the model gets."""
        for node in list(graph.nodes):
            if node.target is not torch.ops.fxprune.function_marker.default:
                continue
            like, tensors, key = node.args
            call = self._calls[key]
            path = f"{_ADDED}{self._number(call)}"
            if not hasattr(model, path):
                kept = call.arguments is not None
                name = call.function.__name__
                model.add_module(path, AutogradFunction(call.function) if kept else ForwardOnly(name))
            with graph.inserting_before(node):
                if call.arguments is None:
                    new = graph.call_module(path, (like,))
                else:
                    given = iter(tensors)
                    args = tuple(next(given) if a is Tensor else a for a in call.arguments)
                    new = graph.call_module(path, args, {"like": like})
            new.meta = {**node.meta, "maybe_itself": call.passes_on}
            node.replace_all_uses_with(new)
            graph.erase_node(node)

    def _marked(self, function: Any, args: tuple[Any, ...]) -> Any:
        tensors = [a for a in args if isinstance(a, Tensor)]
        before = [t._version for t in tensors]
        with _without_no_grad():
            made = forward_of(function, *args)
        plain = tuple(Tensor if isinstance(a, Tensor) else a for a in args)
        held = all(a is Tensor or type(a) in PLAIN for a in plain) and isinstance(made, Tensor)
        held = held and before == [t._version for t in tensors]  # it writes to nothing that it is given
        results = [t for t in pytree.tree_leaves(made) if isinstance(t, Tensor)]
        passes_on = any(_share(t, r) for t in tensors for r in results)
        key = self._key(_Call(function, plain if held else None, passes_on))
        if isinstance(made, Tensor):  # `x.view_as(x)` is x
            made = next((t for t in tensors if _same(t, made)), made)

        def marked(value: Tensor) -> Tensor:
            if not is_float(value):
                return value
            given = tensors if held else []
            result: Tensor = torch.ops.fxprune.function_marker(value, given, key)
            return result

        return pytree.tree_map_only(Tensor, marked, made)

    def _key(self, call: _Call) -> int:
        for key, known in enumerate(self._calls):
            if repr(known) == repr(call) and known.function is call.function:
                return key
        self._calls.append(call)
        return len(self._calls) - 1

    def _number(self, call: _Call) -> int:
        """Count up to a function's first call, whatever its arguments: modes may give it other ones."""
        alike = (
            c.function is call.function and (c.arguments is None) == (call.arguments is None)
            for c in self._calls
        )
        return [*alike].index(True)


def _share(a: Tensor, b: Tensor) -> bool:
    """Do they share memory?"""
    try:
        return a.untyped_storage()._cdata == b.untyped_storage()._cdata
    except NotImplementedError:  # a tensor of a kind that has no memory
        return True


def _same(a: Tensor, b: Tensor) -> bool:
    """Is one the other, seen alike?"""
    if (
        not _share(a, b)
        or a.ndim != b.ndim
        or (a.dtype, a.is_conj(), a.is_neg()) != (b.dtype, b.is_conj(), b.is_neg())
    ):
        return False
    places = ((*t.shape, *t.stride(), t.storage_offset()) for t in (a, b))
    return all(statically_known_true(x == y) for x, y in zip(*places, strict=True))


@contextlib.contextmanager
def _without_no_grad() -> Iterator[None]:
    """Ignore a forward's own `no_grad` (a checkpoint has one): it never records gradients anyway."""
    enter, leave = torch.no_grad.__enter__, torch.no_grad.__exit__
    here = this_thread_only()
    torch.no_grad.__enter__ = lambda self: None if here() else enter(self)  # type: ignore[method-assign]
    torch.no_grad.__exit__ = lambda self, *e: None if here() else leave(self, *e)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.no_grad.__enter__, torch.no_grad.__exit__ = enter, leave  # type: ignore[method-assign]
