"""What stands for a value while a model is traced: it answers what Python asks and torch.fx does not."""

from __future__ import annotations

import builtins
import collections
import dis
import functools
import math
import operator
import sys
import types
from collections.abc import Callable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx.proxy import Attribute

from fxprune.capture.asked_types import MATCH
from fxprune.capture.devices import OF_DEVICES
from fxprune.capture.number_types import want_shadow
from fxprune.capture.questions import OF_GRADIENTS
from fxprune.capture.symbolic.counted_parts import guard_count
from fxprune.capture.symbolic.device_read import DeviceRead
from fxprune.capture.symbolic.numbers import ufunc_as_node
from fxprune.capture.symbolic.picked_rows import written_rows
from fxprune.capture.symbolic.table_keys import LIBRARY, counts, looks_up
from fxprune.capture.texts import is_message
from fxprune.graph.nests import leaves
from fxprune.graph.own_nodes import guard_argument, written
from fxprune.graph.source_files import is_users, users_frame
from fxprune.graph.tensors import holds_attributes

if TYPE_CHECKING:
    from fxprune.capture.symbolic.tracer import Tracer

__all__ = ["TracedAttribute", "TracedValue", "stands_for"]

_OWN_ANSWERS = {"layout", "grad", "_version", "_base", "_is_view"}
UNPACK, LOAD_ATTR = dis.opmap["UNPACK_SEQUENCE"], dis.opmap["LOAD_ATTR"]
MATCH_CLASS = dis.opmap["MATCH_CLASS"]


class TracedValue(fx.Proxy):
    """A proxy that knows what it is for the example.

    It has no method of a plain name: `x.value` is the model's.
    """

    tracer: Tracer

    def __getattr__(self, name: str) -> Any:
        """Answer `hasattr(x, "mask")` by what x stands for; the base class has all.  A rank is a number."""
        if "_held" in self.__dict__:
            return _part_of_object(self, name)
        if name == "dtype":
            return self.tracer.dtype_read(TracedAttribute(self, name), sys._getframe(1))
        if name == "ndim" and (rank := self.tracer.rank(self)) is not None:
            return rank
        if name in OF_DEVICES and isinstance(_for_example(self), Tensor):
            return name == f"is_{self.tracer.kind_of_device(self.device)}"
        if name in OF_GRADIENTS.attributes and isinstance(_for_example(self), Tensor):
            return self.tracer.asks_gradient(self, name)
        if name in _OWN_ANSWERS and isinstance(value := _for_example(self), Tensor):
            if name == "layout":
                return value.layout
            if name == "grad":  # of the call itself: nobody has gone back yet
                return None
            raise NotImplementedError(f"the code asks a tensor for {name}, which no graph holds")
        if not hasattr(Tensor, name):
            value = _for_example(self)
            if value is not self and not hasattr(value, name):
                raise AttributeError(f"{type(value).__name__!r} object has no attribute {name!r}")
        return (TracedDevice if name == "device" else TracedAttribute)(self, name)

    @classmethod
    def __torch_function__(cls, orig_method: Any, types: Any, args: Any = None, kwargs: Any = None) -> Any:
        """Refuse `table[i] = x` where the table is a tensor that the code made: it would be written once."""
        if orig_method is Tensor.__setitem__:
            raise NotImplementedError("a tensor that the code made is written to")
        return super().__torch_function__(orig_method, types, args, kwargs)

    def __int__(self) -> int:
        """Return the example's number, which the graph checks, where the call itself can't be a node."""
        want_shadow(sys._getframe(1))
        return _number(self, torch.sym_int)

    def __float__(self) -> float:
        want_shadow(sys._getframe(1))
        return _number(self, torch.sym_float)

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        """Record `np.sqrt(n)` of a size; of a tensor it takes values, which are not there."""
        numbers = all(not isinstance(_for_example(a), Tensor) for a in args if isinstance(a, TracedValue))
        return ufunc_as_node(self.tracer, ufunc, args) if numbers and not kwargs else NotImplemented

    def __index__(self) -> int:
        """Let `range(n)` run as often as for the example, which the graph checks."""
        return _number(self, torch.sym_int)

    def __floor__(self) -> Any:
        return self.tracer.create_proxy("call_function", math.floor, (self,), {})

    def __ceil__(self) -> Any:
        return self.tracer.create_proxy("call_function", math.ceil, (self,), {})

    def __trunc__(self) -> Any:
        return self.tracer.create_proxy("call_function", math.trunc, (self,), {})

    def __round__(self, digits: Any = None) -> Any:
        args = (self,) if digits is None else (self, digits)
        return self.tracer.create_proxy("call_function", builtins.round, args, {})

    def __abs__(self) -> Any:
        return self.tracer.create_proxy("call_function", operator.abs, (self,), {})

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> tuple[Any, Any]:
        return other // self, other % self

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Answer `x.__class__` in the model's code, and in `functools.singledispatch`.

        What `isinstance` asks is answered elsewhere.
        """
        caller = sys._getframe(1)
        file, asks = caller.f_code.co_filename, caller.f_code.co_code[caller.f_lasti]
        if asks == MATCH_CLASS and is_users(file):
            raise NotImplementedError(MATCH)
        if asks == LOAD_ATTR and (is_users(file) or file == functools.__file__):
            return self.tracer.type_of(self) or type(self)
        return type(self)

    def __str__(self) -> str:
        """Write a size or a shape into a text as the example's, where the model's code does."""
        return self._in_words(str)

    def __repr__(self) -> str:
        return self._in_words(repr)

    def _in_words(self, write: Callable[[Any], str]) -> str:
        caller = sys._getframe(2)
        if is_users(caller.f_code.co_filename) and isinstance(_for_example(self), (int, float, tuple)):
            return self._number_in_words(caller, write)
        return super().__repr__()

    def _number_in_words(self, caller: types.FrameType, write: Callable[[Any], str]) -> str:
        """Write a size as the example's, which the graph checks but where the text is a message."""
        if is_message(caller):
            return write(_for_example(self))
        return write(self.tracer.decisions.value(self))

    def __format__(self, spec: str) -> str:
        """Write a size into a text as the example's, which the graph checks."""
        value = _for_example(self)
        if value is self or isinstance(value, Tensor):
            return super().__repr__()
        return self._number_in_words(sys._getframe(1), lambda number: format(number, spec))

    def __hash__(self) -> int:
        """Look a size up in a table (`{16: .., 32: ..}[n]`) as the example's, which the graph checks.

        In a table that a module keeps, and the same code fills, each size stays one of its own.
        """
        return self._hash_in(sys._getframe(1))

    def _hash_in(self, caller: types.FrameType) -> int:
        file = caller.f_code.co_filename
        if file == collections.__file__:
            caller = users_frame(caller) or caller
        if (is_users(file) or file in LIBRARY) and (looks_up(caller) or counts(caller)):
            value = _for_example(self)
            if isinstance(value, (int, float, str, tuple, torch.dtype)):  # `{(7, 7): ..}[x.shape[2:]]`
                return hash(self.tracer.decisions.value(self))
        return id(self)

    def __len__(self) -> int:
        """Count the items, as `f(*x.shape)` asks."""
        value = self.tracer.decisions.structure(self)
        if isinstance(value, (tuple, list, dict)):
            self.tracer.rank_is_asked(self)
            guard_count(self.tracer, self, builtins.len(value))
            return builtins.len(value)
        raise TypeError("how long a tensor is may depend on the input")

    def __iter__(self) -> Iterator[Any]:
        """Iterate as often as `q, k, v = x` says; the base class decodes the caller's whole code for that."""
        caller = sys._getframe(1)
        op, count = caller.f_code.co_code[caller.f_lasti : caller.f_lasti + 2]
        if op != UNPACK:
            return self.tracer.iter(self)
        if getattr(caller.f_code, "co_exceptiontable", b"?"):  # code may catch what Python raises of another
            value = self.tracer.decisions.structure(self)
            if isinstance(value, (tuple, list)) and builtins.len(value) != count:
                return self.tracer.iter(self)
            self.tracer.rank_is_asked(self)
        guard_count(self.tracer, self, count)
        return (self[i] for i in range(count))  # type: ignore[index]

    def __copy__(self) -> Any:
        """Return itself: a copy of a tensor shares its memory."""
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Any:
        return self.clone() if stands_for(self, Tensor) else self

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse `x.data = y`, which changes the tensor that `x` stands for."""
        if hasattr(Tensor, name):
            raise NotImplementedError(f"it assigns to .{name} of a tensor")
        super().__setattr__(name, value)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Record `x[index] = value`; where the index is a mask, it acts on each element alike."""
        tracer = self.tracer
        if tracer.is_part(value, self, index):
            return  # `x[index] += y`, which wrote to x already
        mask = tracer.decisions.structure(index) if isinstance(index, fx.Proxy) else None
        if isinstance(mask, Tensor) and mask.dtype is torch.bool and isinstance(value, (bool, int, float)):
            for _ in range(tracer.decisions.structure(self).ndim - mask.ndim):
                index = index.unsqueeze(-1)
            tracer.write(self, self.masked_fill(index, value))
        elif isinstance(mask, Tensor) and (rows := written_rows(tracer, self, index, value)) is not None:
            tracer.write(self, rows)
        else:
            tracer.write(self, tracer.create_proxy("call_function", written, (self, index, value), {}))


def _in_place(operation: Callable[[Any, Any], Any]) -> Callable[[TracedValue, Any], Any]:
    """Make `x += y`, which changes a tensor for all who hold it, and makes a new number of a number."""

    def apply(self: TracedValue, other: Any) -> Any:
        return self.tracer.augmented(operation, self, other)

    return apply


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    setattr(TracedValue, f"__i{_name}__", _in_place(getattr(operator, f"__{_name}__")))


class TracedAttribute(TracedValue, Attribute):
    """`x.shape`, a node once it is used as a value; `x.view(..)` is a node of its own."""

    def __hash__(self) -> int:
        """Let a dtype be looked up (`LARGE[x.dtype]`) as the example's, which the graph checks."""
        value = self.tracer.value_or_self(self) if self.attr == "dtype" else self
        if isinstance(value, torch.dtype):
            return hash(self.tracer.decisions.value(self))
        return self._hash_in(sys._getframe(1))

    def __str__(self) -> str:
        """Write a dtype into a text in the same way."""
        value = self.tracer.value_or_self(self) if self.attr == "dtype" else self
        dtype = isinstance(value, torch.dtype)
        return str(self.tracer.decisions.value(self)) if dtype else self._in_words(str)


class TracedDevice(DeviceRead, TracedAttribute):
    """`x.device`, of which code may ask the kind."""


def stands_for(x: TracedValue, classes: Any) -> bool:
    """Is what x stands for an instance?  (An answer by `__class__` would deceive torch's C code too.)"""
    held = x.tracer.tensors.get(x.node.target) if x.node.op == "get_attr" else None
    return isinstance(_for_example(x) if held is None else held, classes)


def _for_example(x: TracedValue) -> Any:
    return x.tracer.value_or_self(x)


def _part_of_object(x: TracedValue, name: str) -> Any:
    """Read an attribute of an argument: a flag, a word or None as it is, which the graph checks."""
    if not hasattr(x.__dict__["_held"], name):
        has = x.tracer.create_proxy("call_function", hasattr, (x, name), {})
        x.tracer.create_proxy("call_function", guard_argument, (has, False), {"name": f"{x.node}.{name}"})
    value, part = getattr(x.__dict__["_held"], name), TracedAttribute(x, name)
    if isinstance(value, (bool, str, type(None))):
        x.tracer.create_proxy("call_function", guard_argument, (part, value), {"name": f"{x.node}.{name}"})
        return value
    if isinstance(value, Enum):
        word, options = x.tracer.create_proxy("call_function", str, (part,), {}), {"name": f"{x.node}.{name}"}
        x.tracer.create_proxy("call_function", guard_argument, (word, str(value)), options)
        return value
    flags = leaves(value, (bool, str, Enum, type(None))) if isinstance(value, (list, tuple, dict)) else ()
    if any(True for _ in flags):
        raise NotImplementedError(f"{x.node}.{name} of an argument holds flags beside others")
    if holds_attributes(value) and not isinstance(value, Tensor):
        part.__dict__["_held"] = value
    return part


def _number(x: TracedValue, kind: Callable[..., Any]) -> Any:
    return x.tracer.decisions.value(x.tracer.create_proxy("call_function", kind, (x,), {}))
