"""Run a module's graph with all that it holds and casts to in double precision.

Complex numbers are two floats: what is said of float64 here holds for complex128.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.graph.copies import deep_copy, empty_copies, graph_shared
from fxprune.graph.example import Example
from fxprune.graph.precision_nodes import precisions_unguarded
from fxprune.graph.process_lock import PROCESS_LOCK
from fxprune.graph.tensors import in_float64, is_float, named_tensors
from fxprune.graph.values import bound_arguments

__all__ = [
    *("Float64Interpreter", "default_float64", "doubled", "in_double", "in_eval_mode"),
    "put_tensors",
]

_RAISED = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
_DOUBLE = {torch.float64, torch.complex128}
_CASTS = {"cfloat": torch.complex128, **dict.fromkeys(["float", "half", "bfloat16"], torch.float64)}

# Reading a tensor's property, and deepcopy, whose memo holds every tensor that was copied before.
_NO_OPS = {"__get__", "__deepcopy__"}


def doubled(module: fx.GraphModule) -> fx.GraphModule:
    """Copy a module in eval mode, every tensor in float64; the graph is shared."""

    def copied(held: nn.Module) -> nn.Module:
        held = in_float64(deep_copy(held, {**empty_copies(held), **_raised_copies(held)}))
        in_eval_mode(held)
        return held

    return graph_shared(module, copied)


def _raised_copies(module: nn.Module) -> dict[int, Any]:
    """Copy plain weights and buffers of lower precision in one go, by their ids; the others are left out."""
    found: dict[int, Any] = {}
    for _, t in named_tensors(module):
        if t.dtype in _RAISED and t.layout is torch.strided:
            if type(t) is nn.Parameter:
                found[id(t)] = nn.Parameter(in_float64(t.detach()), t.requires_grad)
            elif type(t) is Tensor and t.is_leaf and not vars(t) and not t.requires_grad:
                found[id(t)] = in_float64(t)
    return found


def put_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a copy of a graph in float64 other tensors, by its names for them."""
    for name, t in named_tensors(module):
        if name in tensors and not t.is_meta and is_float(t):
            t.data = tensors[name].to(t)


def in_eval_mode(module: nn.Module) -> None:
    """Switch to eval mode, also where a module's own `train` forgets to return it or does not pass it on."""
    module.eval()
    for part in module.modules():
        part.training = False


@contextlib.contextmanager
def default_float64() -> Iterator[None]:
    """Make tensors float64 that the model's code makes on the way (`torch.zeros(n)`), in this thread alone.

    torch's default dtype is the process's: a model that another thread runs meanwhile must not see it change.
    """
    with PROCESS_LOCK, _MadeDouble(), precisions_unguarded():
        yield


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """Run Python code in double precision meanwhile, tensors and casts that it makes included."""
    with default_float64(), _Raising():
        yield


class _MadeDouble(TorchFunctionMode):
    """A tensor of lower precision that is made of none (of sizes, of whole numbers) is made in float64.

    Others reach an op by ways that no mode sees (`torch.Tensor(2, 3)`, scripted code): they are raised where
    they meet float64.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _NO_OPS:
            return func(*args, **kwargs)
        given = {a.dtype for a in _items(args, kwargs) if isinstance(a, torch.Tensor)}
        low = given & _RAISED.keys()
        if low and given & _DOUBLE and not _writes(func, kwargs):
            args, kwargs = pytree.tree_map_only(torch.Tensor, in_float64, (args, kwargs))
            low = set()
        made = func(*args, **kwargs)
        if low or _asks_dtype(args, kwargs) or _writes(func, kwargs):
            return made
        if type(made) is torch.Tensor:
            return in_float64(made) if made.dtype in _RAISED else made
        return pytree.tree_map_only(torch.Tensor, in_float64, made) if type(made) in (tuple, list) else made


def _writes(func: Any, kwargs: dict[str, Any]) -> bool:
    name = getattr(func, "__name__", "").partition(".")[0]
    return name.endswith("_") or "out" in kwargs


class _Raising(TorchFunctionMode):
    """Casts to a lower precision go to float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _CASTS and args and isinstance(args[0], torch.Tensor):
            return args[0].to(_CASTS[name])
        return func(*_raised(args), **_raised(kwargs))


class Float64Interpreter(fx.Interpreter):
    """Runs a graph in float64, casts to a lower precision that its code makes included."""

    module: fx.GraphModule

    def run_on(self, example: Example) -> Any:
        return self.run(*bound_arguments(self.module, example))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(target, _raised(args), _raised(kwargs))

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in _CASTS:
            return args[0].to(_CASTS[target])
        return super().call_method(target, _raised(args), _raised(kwargs))


def _raised(arguments: Any) -> Any:
    """Return arguments that ask for float64 where they ask for a lower precision; most ask for none."""

    def up(value: Any) -> Any:
        return _RAISED.get(value, value) if isinstance(value, torch.dtype) else value

    return pytree.tree_map(up, arguments) if _asks_dtype(arguments) else arguments


def _asks_dtype(*arguments: Any) -> bool:
    return any(isinstance(item, torch.dtype) for item in _items(*arguments))


def _items(*values: Any) -> Iterator[Any]:
    """Yield what plain containers hold: of an op's arguments, ten times as quick as torch's pytree."""
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _items(*value)
        elif isinstance(value, dict):
            yield from _items(*value.values())
        else:
            yield value
