"""Functions that stand for one node of a graph, whoever traces them: pickling a GraphModule does, too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import fx

__all__ = ["one_node"]


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
