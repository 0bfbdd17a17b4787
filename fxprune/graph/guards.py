"""Guards: nodes that refuse a call which the captured graph does not compute.

Another branch, another plain argument, another number of iterations.  To add a kind, write the error that it
raises:

    @guard
    def guard_branch(value, expected, *, where): -> Exception
        return InputSizeError(...)

`graph.call_function(guard_branch, (node, True), {"where": "model.py:7"})` then raises that error where the
node's value is not `True`.  Keyword arguments are only words: no digest reads them.

They are found by name among `own_nodes` when a graph is saved or pickled: each keeps its name for ever.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensor
from torch.fx.node import has_side_effect
from torch.utils import _pytree as pytree

from fxprune.errors import InputArgumentError, InputSizeError, shown

__all__ = [
    *(
        "guard",
        "guard_argument",
        "guard_branch",
        "guard_device",
        "guard_given",
        "guard_kind",
        "guard_layout",
        "guard_size",
        "guard_tensor",
        "guard_values",
        "is_guard",
    ),
    *("kind_of", "layout_of_argument", "one_node", "only_checked", "with_effect"),
]


def one_node(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that becomes one call in the graph if a proxy is among its arguments; else it runs."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for a in args:
            if isinstance(a, fx.Proxy):
                return a.tracer.create_proxy("call_function", target, args, kwargs)
        return function(*args, **kwargs)

    # A builtin has no place for a wrapper: the graph calls it by its own name.
    target = call if hasattr(function, "__globals__") else function
    return call


_GUARDS: set[Callable[..., Any]] = set()


def guard(
    error: Callable[..., Exception], same: Callable[[Any, Any], bool] | None = None
) -> Callable[..., None]:
    """Make a node that raises `error(value, expected, **words)` where the value is not the expected one.

    `same` says what that means; equality by default.

    It costs nothing where another tool records the graph.  torch.jit.trace (and what stands on it: ONNX's
    first exporter, OpenVINO, Core ML) sees no operation of it; torch.compile and torch.export see the
    branch that the model's own code has, so that another size is compiled anew, and refused.
    """

    @functools.wraps(error)
    def check(value: Any, expected: Any, **words: Any) -> None:
        if not (same or _is)(value, expected):
            raise error(value, expected, **words)

    node = has_side_effect(one_node(check))
    _GUARDS.add(node)
    return node


def is_guard(node: fx.Node) -> bool:
    """Does the node refuse calls rather than compute something?"""
    return node.op == "call_function" and node.target in _GUARDS


def only_checked(graph: fx.Graph) -> dict[fx.Node, None]:
    """Return the checks of values, and the nodes that these alone need, in order."""
    found: dict[fx.Node, None] = {}
    for node in reversed(graph.nodes):
        alone = node.users and found.keys() >= node.users.keys()
        if node.target is guard_values or (alone and node.op != "placeholder"):
            found[node] = None
    return dict(reversed(found.items()))


def with_effect(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a node that changes no value, and stays as a guard does."""
    node = has_side_effect(one_node(function))
    _GUARDS.add(node)
    return node


@guard
def guard_branch(value: Any, expected: Any, *, where: str) -> Exception:
    """Refuse an input for which the traced model's code would have taken another branch."""
    return InputSizeError(
        f"this input size takes another branch at {where} than the example did; "
        f"prune again with example_inputs= of this size"
    )


@guard
def guard_size(value: Any, expected: Any, *, what: str, where: str = "") -> Exception:
    """Refuse a size for which the captured graph does not hold."""
    found = f"{what} is not so here" if expected is True else f"{what} is {value}"
    wanted = "that" if expected is True else expected
    line = f" (the code at {where} can't be followed for others)" if where else ""
    return InputSizeError(
        f"{found}: torch.export captured this model for {wanted}{line}; prune again with example_inputs= of "
        f"this size"
    )


def _holds(value: Any, expected: Any) -> bool:
    """Is it so?  To compilers it is an assertion of torch's; where there are no values, nothing is asked."""
    if torch.compiler.is_compiling():
        torch._assert_async(value == expected, "a check of the model's own does not hold for these values")
        return True
    if torch._C._get_tracing_state() is not None or value.is_meta or isinstance(value, FakeTensor):
        return True
    return bool(value == expected)


@functools.partial(guard, same=_holds)
def guard_values(value: Tensor, expected: bool, *, where: str) -> Exception:
    """Refuse values for which the model's own code raises."""
    return InputArgumentError(f"the model's own check at {where} does not hold for the values of this input")


def _is_argument(value: Any, expected: Any) -> bool:
    """Compare plain values, however nested: a tensor is none, a flag no number, 2.0 no 2, a list no tuple."""
    if isinstance(value, Tensor):
        recorded = torch._C._get_tracing_state() is not None and value.dim() == 0
        if not recorded or expected is None or isinstance(expected, str):
            return False
        with _unseen_by_torchscript():  # ONNX's first exporter makes tensors of defaults
            return bool(value == expected)
    if isinstance(expected, dict):
        alike = isinstance(value, dict) and value.keys() == expected.keys()
        return alike and all(_is_argument(value[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        alike = isinstance(value, tuple if isinstance(expected, tuple) else list)
        return alike and len(value) == len(expected) and all(map(_is_argument, value, expected))
    if value is None or expected is None or isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, float) is not isinstance(expected, float):
        return False  # `x * 2.0` has another type than `x * 2`
    same = value == expected or (value != value and expected != expected)
    return type(same) is bool and same


@functools.partial(guard, same=_is_argument)
def guard_given(value: Any, expected: Any, *, part: str, name: str) -> Exception:
    """Refuse another plain argument than that with which the call was made that a part stands for."""
    said = "a tensor" if isinstance(value, Tensor) else shown(value)
    return InputArgumentError(
        f"{name}={said}: {part} is a part of the pruned graph, in which it is called with {name}="
        f"{shown(expected)}, and computes nothing else; prune again with an example whose call of it has this"
    )


def _is_tensor(value: Any, expected: Any) -> bool:
    return isinstance(value, Tensor)


@functools.partial(guard, same=_is_argument)
def guard_argument(value: Any, expected: Any, *, name: str) -> Exception:
    """Refuse another plain argument of forward than the one that was captured."""
    said = "a tensor" if isinstance(value, Tensor) else shown(value)
    return InputArgumentError(
        f"{name}={said}: the model was captured with {name}={shown(expected)}, and the result computes "
        f"nothing else; prune again with example_kwargs={{{name!r}: ...}}"
    )


@functools.partial(guard, same=_is_tensor)
def guard_tensor(value: Any, expected: Any, *, name: str) -> Exception:
    """Refuse a call that leaves out a tensor which the captured one had."""
    return InputArgumentError(
        f"{name}={shown(value)}: the model was captured with a tensor for {name}; prune again with an "
        f"example that leaves it out"
    )


def kind_of(tensor: Tensor) -> str:
    """Return whether a tensor holds truths, whole numbers, real or complex ones, in whatever precision."""
    if tensor.is_complex():
        return "complex numbers"
    if tensor.is_floating_point():
        return "real numbers"
    return "truth values" if tensor.dtype is torch.bool else "whole numbers"


def _is_kind(value: Any, expected: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(kind_of(value) == expected)
    return value is not None and not isinstance(value, (list, tuple, dict))


@functools.partial(guard, same=_is_kind)
def guard_kind(value: Any, expected: Any, *, name: str, where: str = "") -> Exception:
    """Refuse a tensor of another kind of numbers than the captured one, where code may have asked for it."""
    asks = f", after which the code at {where} asks" if where else ""
    is_one, kind = isinstance(value, Tensor), type(value).__name__
    given, one = (f"a tensor of {kind_of(value)}", "one") if is_one else (f"a {kind}", "a tensor")
    return InputArgumentError(
        f"{name} is {given}: the model was captured with {one} of {expected}{asks}; "
        f"prune again with example inputs of this kind"
    )


def _is_in_order(value: Any, expected: Any) -> bool:
    with _unseen_by_torchscript():
        return all(t.is_contiguous() for t in pytree.tree_leaves(value) if isinstance(t, Tensor))


@functools.partial(guard, same=_is_in_order)
def guard_layout(value: Any, expected: Any, *, name: str, where: str) -> Exception:
    """Refuse a tensor that does not lie in memory in the order of its dimensions, where code may see that."""
    return InputArgumentError(
        f"{name} does not lie in memory in the order of its dimensions, and the model's code at {where} may "
        f"compute something else by that: give {name}.contiguous(), or prune with form='module', which keeps "
        f"the model's code"
    )


@guard
def guard_device(value: Any, expected: Any, *, where: str) -> Exception:
    """Refuse a kind of device on which the traced model's code would have taken another way."""
    return InputArgumentError(
        f"inputs on {value}: the model's code at {where} asks for the device, and takes another way there "
        f"than on {expected}, where it was captured; prune the model on {value}, or with form='module', "
        f"which keeps the model's code"
    )


def layout_of_argument(value: Any, numbers: bool = False) -> str:
    """Spell how an argument is nested, flags and words in it included: `[*, *]`, `{'a': *, 'b': True}`.

    numbers: spell numbers as well.
    """
    if isinstance(value, (list, tuple)):
        inner = ", ".join(layout_of_argument(v, numbers) for v in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {layout_of_argument(v, numbers)}" for k, v in value.items()) + "}"
    plain = (bool, str, int, float) if numbers else (bool, str)
    return repr(value) if value is None or isinstance(value, plain) else "*"


def _is(value: Any, expected: Any) -> bool:
    """Are they equal?  (A symbolic size answers as a branch would; TorchScript does not see the question.)"""
    if torch.compiler.is_compiling():
        if expected is False:
            return not value
        return True if (value if expected is True else value == expected) else False  # noqa: SIM210
    with _unseen_by_torchscript():
        return bool(value == expected)


@contextlib.contextmanager
def _unseen_by_torchscript() -> Iterator[None]:
    """Hide computations with sizes from torch.jit.trace, for which they are tensors."""
    tracing = torch._C._get_tracing_state()
    set_tracing = torch._C._set_tracing_state  # type: ignore[attr-defined]
    if tracing is None:
        yield
        return
    set_tracing(None)
    try:
        yield
    finally:
        set_tracing(tracing)
