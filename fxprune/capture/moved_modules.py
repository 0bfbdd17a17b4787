"""Modules that a model's own code moves while it runs (`expert.to(x.device)`) stay where they are.

What is computed does not depend on where, and moving them would move the user's own weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

from fxprune.graph.process_lock import this_thread_only

__all__ = ["unmoved_modules"]


@contextlib.contextmanager
def unmoved_modules(value_of: Callable[[fx.Proxy], Any] | None = None) -> Iterator[None]:
    """Let `module.to(..)` return the module, in this thread.

    Args:
        value_of: what a proxy among the arguments gives for the example.

    Raises (from the model's code):
        NotImplementedError: it asks for another dtype than the weights have.
    """
    here, original = this_thread_only(), nn.Module.to

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if not here():
            return original(module, *args, **kwargs)
        if value_of is not None:
            args, kwargs = fx.node.map_aggregate((args, kwargs), _given(value_of))
        _, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        floats = (t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())
        if dtype is not None and any(own != dtype for own in floats):
            raise NotImplementedError(
                f"it converts the weights of a {type(module).__name__} to {dtype} while it runs: convert the "
                f"model before it is pruned"
            )
        return module

    nn.Module.to = to  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.to = original  # type: ignore[method-assign]


def _given(value_of: Callable[[fx.Proxy], Any]) -> Callable[[Any], Any]:
    return lambda a: value_of(a) if isinstance(a, fx.Proxy) else a
