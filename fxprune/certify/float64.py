"""Float64 twins: a module's graph run with all that it holds and casts to in double precision."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.inputs import Example
from fxprune.passes.propagate_values import bound_arguments

__all__ = ["Float64Interpreter", "default_float64", "doubled"]


def doubled(module: fx.GraphModule) -> fx.GraphModule:
    """A twin in eval mode, with a float64 copy of every tensor; the graph is shared."""
    twin = copy.copy(module)
    shell = nn.Module()
    shell._modules = module._modules
    shell._parameters, shell._buffers = module._parameters, module._buffers
    shell = copy.deepcopy(shell).double().eval()
    twin.__dict__ = {
        **module.__dict__,
        **{k: shell.__dict__[k] for k in ("_modules", "_parameters", "_buffers")},
    }
    return twin


@contextlib.contextmanager
def default_float64() -> Iterator[None]:
    """For tensors that the model's code makes on the way (`torch.zeros(n)`)."""
    was = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(was)


_LOW = (torch.float16, torch.bfloat16, torch.float32)
_CASTS = {"float", "half", "bfloat16"}


class Float64Interpreter(fx.Interpreter):
    """Runs a graph in float64, casts to a lower precision that its code makes included."""

    module: fx.GraphModule

    def run_on(self, example: Example) -> Any:
        return self.run(*bound_arguments(self.module, example))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(target, *_raised(args, kwargs))

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in _CASTS:
            return args[0].double()
        return super().call_method(target, *_raised(args, kwargs))


def _raised(args: Any, kwargs: Any) -> tuple[Any, Any]:
    def up(value: Any) -> Any:
        return torch.float64 if isinstance(value, torch.dtype) and value in _LOW else value

    return pytree.tree_map(up, (args, kwargs))
