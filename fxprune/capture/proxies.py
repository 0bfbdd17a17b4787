"""What Python asks of a proxy that torch.fx leaves without an answer, answered while a model is traced."""

from __future__ import annotations

import builtins
import contextlib
import dis
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.proxy import Attribute

from fxprune.capture.autograd_functions import traced_apply
from fxprune.capture.one_node import one_node
from fxprune.capture.writes import written

__all__ = ["answering_proxies"]

UNPACK = dis.opmap["UNPACK_SEQUENCE"]
# These take sizes one by one, and know no proxies among them.
FACTORIES = ("empty", "ones", "zeros")
# Drawn anew in every call of the result, not once while it is traced.
RANDOM = ("normal", "rand", "randint", "randn", "randperm")


@contextlib.contextmanager
def answering_proxies(tracer: fx.Tracer) -> Iterator[None]:
    """`len(x)`, `int(n)`, `float(n)`, `f(*x.shape)`, `x[i] = y`, `x.device.type`, `torch.zeros(n, m)`."""
    with contextlib.ExitStack() as patches:

        def patch(owner: Any, name: str, value: Any) -> None:
            if name in vars(owner):
                patches.callback(setattr, owner, name, vars(owner)[name])
            else:
                patches.callback(delattr, owner, name)
            setattr(owner, name, value)

        # A loop over a `len` still fails: torch.export takes it.
        patch(builtins, "len", one_node(builtins.len))
        patch(builtins, "callable", lambda x, of=builtins.callable: type(x) is not fx.Proxy and of(x))
        for name in FACTORIES:
            patch(torch, name, one_node(getattr(torch, name)))
        for name in RANDOM:
            patch(torch, name, _always_a_node(getattr(torch, name), tracer))
        patch(torch, "finfo", _limits(torch.finfo))
        patch(torch, "_check_with", _unless_traced(torch._check_with))  # torch._check calls it
        patch(fx.Proxy, "__int__", _number(int))
        patch(fx.Proxy, "__float__", _number(float))
        patch(fx.Proxy, "__len__", _length)
        patch(fx.Proxy, "__iter__", _unpacked)
        patch(fx.Proxy, "__setitem__", _set_item)
        patch(Attribute, "__getattr__", _of_attribute)
        function = torch.autograd.Function
        patch(function, "apply", classmethod(traced_apply(vars(function)["apply"])))
        yield


def _always_a_node(function: Callable[..., Any], tracer: fx.Tracer) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return tracer.create_proxy("call_function", function, args, kwargs)

    return call


def _unless_traced(check: Callable[..., None]) -> Callable[..., None]:
    """Asserts are not in a result."""

    def checked(error: Any, cond: Any, *message: Any) -> None:
        if not isinstance(cond, fx.Proxy):
            check(error, cond, *message)

    return checked


def _limits(of: Callable[..., Any]) -> Callable[..., Any]:
    """Of the dtype that the example has."""

    def limits(dtype: Any = None) -> Any:
        if isinstance(dtype, fx.Proxy):
            tracer: Any = dtype.tracer
            dtype = tracer.decisions.structure(dtype)
        return of() if dtype is None else of(dtype)

    return limits


def _number(kind: type) -> Callable[[fx.Proxy], Any]:
    """The example's number, which the graph checks."""

    def convert(x: fx.Proxy) -> Any:
        tracer: Any = x.tracer
        return tracer.decisions.value(tracer.create_proxy("call_function", kind, (x,), {}))

    return convert


def _length(x: fx.Proxy) -> int:
    """`f(*x.shape)` asks how many there are."""
    tracer: Any = x.tracer
    value = tracer.decisions.structure(x)
    if isinstance(value, (tuple, list)):
        return builtins.len(value)
    raise TypeError("how long a tensor is may depend on the input")


def _unpacked(x: fx.Proxy) -> Iterator[Any]:
    """`q, k, v = x` says how many; the base class decodes the caller's whole code to find it out."""
    caller = sys._getframe(1)
    op, count = caller.f_code.co_code[caller.f_lasti : caller.f_lasti + 2]
    return (x[i] for i in range(count)) if op == UNPACK else x.tracer.iter(x)  # type: ignore[index]


def _set_item(x: fx.Proxy, index: Any, value: Any) -> None:
    """`x[index] = value`; where the index is a mask, it acts on each element alike."""
    tracer: Any = x.tracer
    mask = tracer.decisions.structure(index) if isinstance(index, fx.Proxy) else None
    if isinstance(mask, Tensor) and mask.dtype is torch.bool and isinstance(value, (bool, int, float)):
        for _ in range(tracer.decisions.structure(x).ndim - mask.ndim):
            index = index.unsqueeze(-1)
        tracer.write(x, x.masked_fill(index, value))
    else:
        tracer.write(x, tracer.create_proxy("call_function", written, (x, index, value), {}))


def _of_attribute(x: Attribute, name: str) -> Any:
    """The type of a device is a word that other code compares and looks up."""
    if name == "type" and x.attr == "device":
        tracer: Any = x.tracer
        return tracer.decisions.structure(x).type
    return Attribute(x, name)
