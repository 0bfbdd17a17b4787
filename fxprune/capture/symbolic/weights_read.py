"""Weights that code reaches past a module's attributes: `parameters()`, `state_dict()`, `_parameters[..]`.

They are no stand-ins, so that torch computes with their numbers at once: a graph would keep what it finds
today.  What is only passed on is followed; the rest is refused, and torch.export has its turn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.overrides import TorchFunctionMode

from fxprune.capture import number_types
from fxprune.capture.devices import asks_kind
from fxprune.capture.questions import OF_PRECISION
from fxprune.capture.symbolic import numbers, numpy_sizes, patches
from fxprune.graph.source_files import OURS, is_users, users_frame

__all__ = ["WeightsRead"]

COMPUTES = "it computes with weights that it finds by going through all of them"
_DRAWS = {
    *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson", "binomial"),
    *("rand_like", "randn_like", "randint_like", "uniform_", "normal_", "bernoulli_", "exponential_"),
    *("random_", "cauchy_", "geometric_", "log_normal_"),
}
_VALUES = {
    *("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__complex__", "equal"),
    *("allclose", "is_nonzero", "__contains__", "__array__", "__dlpack__", "untyped_storage"),
    *("__format__", "__repr__"),
}


class WeightsRead(TorchFunctionMode):
    """A torch function mode that notes what a model's code computes of its weights' numbers.

    Raises NotImplementedError where it makes a plain number of them, or writes to them; and where it draws
    numbers at once, which no stand-in is asked for: a graph would keep those.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        tensors: Mapping[Any, Tensor],
        device_told: Callable[[torch.device, str], torch.device],
    ) -> None:
        super().__init__()
        self._device_told = device_told  # to code that asks for its kind, with the line
        self._names = names  # of the model's tensors, by their ids
        self._memory = {_memory(t): str(name) for name, t in tensors.items()}
        self._made: dict[int, Tensor] = {}
        self.devices: list[torch.device] = []  # of tensors that are no stand-ins
        self.dtype_asked = False  # of a weight, which is then no stand-in

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        reads = any(map(self._is_weight, (*args, *(kwargs or {}).values()))) and _asked_by_users()
        name = getattr(func, "__name__", "")
        writes = (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "__set__")
        if reads and (name in _VALUES or (writes and name not in ("requires_grad_", "retain_grad_"))):
            raise NotImplementedError(COMPUTES)
        made = func(*args, **(kwargs or {}))
        of_tensor = isinstance(made, torch.device) and any(isinstance(given, Tensor) for given in args)
        if of_tensor and (asking := users_frame(sys._getframe(1))):
            if reads and asks_kind(asking):
                made = self._device_told(made, f"{asking.f_code.co_filename}:{asking.f_lineno}")
            self.devices.append(made)
            return made
        drawn = name in _DRAWS and isinstance(made, Tensor) and not isinstance(made, FakeTensor)
        if drawn and _asked_by_users():
            raise NotImplementedError("it draws random numbers into a tensor that it made")
        self.dtype_asked |= reads and (isinstance(made, torch.dtype) or name in OF_PRECISION.calls)
        if reads:
            for value in made if isinstance(made, (tuple, list)) else (made,):
                if isinstance(value, Tensor):
                    self._made[id(value)] = value
        return made

    def name_of(self, tensor: Tensor) -> str | None:
        """Name the weight that a tensor computed of weights is, by another name; None if it is none.

        Raises:
            NotImplementedError: it is something else, computed of weights.
        """
        if id(tensor) not in self._made or id(tensor) in self._names:
            return None
        name = self._memory.get(_memory(tensor))
        if name is None:
            raise NotImplementedError(COMPUTES)
        return name

    def _is_weight(self, value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return any(map(self._is_weight, value))
        return isinstance(value, Tensor) and (id(value) in self._names or id(value) in self._made)


def _memory(t: Tensor) -> tuple[Any, ...]:
    if t.layout is not torch.strided:
        return (id(t),)
    return t.untyped_storage()._cdata, t.storage_offset(), tuple(t.shape), t.stride(), t.dtype


def _asked_by_users() -> bool:
    """Does a model's code ask, through others' at most?  The tracer's own ends are not meant."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if is_users(file):
            return True
        if file.startswith(OURS) and file not in _STAND_IN:
            return False
        frame = frame.f_back
    return False


# What stands in the place of torch's and Python's functions while a model is traced: it hands over to them.
_STAND_IN = {number_types.__file__, numbers.__file__, numpy_sizes.__file__, patches.__file__}
