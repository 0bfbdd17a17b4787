"""What stands for a value while a model is traced: it answers what Python asks and torch.fx does not."""

from __future__ import annotations

import builtins
import dis
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx.proxy import Attribute, TraceError

from fxprune.graph.own_nodes import written
from fxprune.graph.values import NodeError

if TYPE_CHECKING:
    from fxprune.capture.symbolic.tracer import Tracer

__all__ = ["TracedValue", "stands_for"]

UNPACK = dis.opmap["UNPACK_SEQUENCE"]


class TracedValue(fx.Proxy):
    """A proxy that knows what it is for the example.

    It has no method of a plain name: `x.value` is the model's.
    """

    tracer: Tracer

    def __getattr__(self, name: str) -> TracedAttribute:
        """`hasattr(x, "mask")` asks whether there is one; the base class has all."""
        if not hasattr(Tensor, name):
            value = _for_example(self)
            if value is not self and not hasattr(value, name):
                raise AttributeError(f"{type(value).__name__!r} object has no attribute {name!r}")
        return TracedAttribute(self, name)

    def __int__(self) -> int:
        """The example's number, which the graph checks."""
        return _number(self, int)

    def __float__(self) -> float:
        return _number(self, float)

    def __len__(self) -> int:
        """`f(*x.shape)` asks how many there are."""
        value = self.tracer.decisions.structure(self)
        if isinstance(value, (tuple, list)):
            return builtins.len(value)
        raise TypeError("how long a tensor is may depend on the input")

    def __iter__(self) -> Iterator[Any]:
        """`q, k, v = x` says how many; the base class decodes the caller's whole code to find it out."""
        caller = sys._getframe(1)
        op, count = caller.f_code.co_code[caller.f_lasti : caller.f_lasti + 2]
        return (self[i] for i in range(count)) if op == UNPACK else self.tracer.iter(self)  # type: ignore[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        """`x[index] = value`; where the index is a mask, it acts on each element alike."""
        tracer = self.tracer
        mask = tracer.decisions.structure(index) if isinstance(index, fx.Proxy) else None
        if isinstance(mask, Tensor) and mask.dtype is torch.bool and isinstance(value, (bool, int, float)):
            for _ in range(tracer.decisions.structure(self).ndim - mask.ndim):
                index = index.unsqueeze(-1)
            tracer.write(self, self.masked_fill(index, value))
        else:
            tracer.write(self, tracer.create_proxy("call_function", written, (self, index, value), {}))


class TracedAttribute(TracedValue, Attribute):
    """`x.shape`, a node once it is used as a value; `x.view(..)` is a node of its own."""

    def __getattr__(self, name: str) -> Any:
        """The type of a device is a word that other code compares and looks up."""
        if name == "type" and self.attr == "device":
            return self.tracer.decisions.structure(self).type
        return super().__getattr__(name)


def stands_for(x: TracedValue, classes: Any) -> bool:
    """Is what x stands for an instance?  (An answer by `__class__` would deceive torch's C code too.)"""
    held = x.tracer.tensors.get(x.node.target) if x.node.op == "get_attr" else None
    return isinstance(_for_example(x) if held is None else held, classes)


def _for_example(x: TracedValue) -> Any:
    """What it is for the example; the proxy itself where that can't tell."""
    try:
        return x.tracer.decisions.structure(x)
    except (NodeError, TraceError):
        return x


def _number(x: TracedValue, kind: type) -> Any:
    return x.tracer.decisions.value(x.tracer.create_proxy("call_function", kind, (x,), {}))
