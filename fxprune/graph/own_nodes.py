"""Functions that stand for one node of a graph, whoever traces them: pickling a GraphModule does, too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import has_side_effect

from fxprune.errors import InputSizeError

__all__ = ["AutogradFunction", "ModeValue", "_getitem", "holds", "one_node", "split_by_sizes", "written"]


def one_node(function: Callable[..., Any]) -> Callable[..., Any]:
    """Called with a proxy, the function becomes a call in the graph; else it runs."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for a in args:
            if isinstance(a, fx.Proxy):
                return a.tracer.create_proxy("call_function", target, args, kwargs)
        return function(*args, **kwargs)

    # A builtin has no place for a wrapper: the graph calls it by its own name.
    target = call if hasattr(function, "__globals__") else function
    return call


@one_node
def written(x: Tensor, index: Any, value: Any) -> Tensor:
    """`x[index] = value` as a value."""
    x = x.clone()
    x[index] = value
    return x


@has_side_effect
@one_node
def holds(value: Any, expected: Any, *, where: str) -> None:
    """Refuse an input for which the traced model's code would have gone another way."""
    if value != expected:
        raise InputSizeError(
            f"at {where} the model's code takes another way for this input size than for the example that it "
            f"was captured with: prune it with example_inputs= of this size"
        )


class AutogradFunction(nn.Module):
    """Calls a function with a derivative of its own."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, like: Any = None) -> Any:
        return self.function.apply(*args)

    def extra_repr(self) -> str:
        return self.function.__name__


class ModeValue(nn.Module):
    """A constant that depends on `self.training`."""

    def __init__(self, train: Any, eval: Any) -> None:
        super().__init__()
        self.train_value, self.eval_value = train, eval

    def forward(self) -> Any:
        return self.train_value if self.training else self.eval_value

    def extra_repr(self) -> str:
        return f"train={self.train_value}, eval={self.eval_value}"


def split_by_sizes(x: torch.Tensor, sizes: Sequence[int], dim: int = 0) -> tuple[torch.Tensor, ...]:
    """What every kind of split becomes once its parts have sizes of their own."""
    return torch.split(x, list(sizes), dim)


def _getitem(value: Any, index: int) -> Any:
    return value[index]
