"""Casts and `contiguous` may return the tensor itself: torch.export takes the result for that tensor."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.capture.patched import patch
from fxprune.graph.process_lock import this_thread_only
from fxprune.graph.source_files import is_users

__all__ = ["casts_apart", "forget_aliases"]


@contextlib.contextmanager
def casts_apart() -> Iterator[None]:
    """Let a cast to the dtype that a tensor has give another tensor, an alias: torch.export tells them apart.

    `y = x.to(torch.float32)` is x itself where x is that already: what reads x afterwards would read y.
    `y = x.contiguous()` is so as well, as x lies in memory.
    """
    here, contiguous = this_thread_only(), Tensor.contiguous

    def apart(of: Callable[..., Any]) -> Callable[..., Any]:
        def cast(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if (
                is_users(sys._getframe(1).f_code.co_filename)
                and here()
                and (of is contiguous or tensor.is_floating_point())
            ):
                tensor = torch.ops.aten.alias.default(tensor)
            return of(tensor, *args, **kwargs)

        return cast

    with contextlib.ExitStack() as patches:
        for name in _CASTS:
            patch(patches, Tensor, name, apart(getattr(Tensor, name)))
        yield


_CASTS = ("to", "float", "half", "bfloat16", "double", "type_as", "contiguous")


def forget_aliases(graph: fx.Graph) -> None:
    """Let the tensor itself stand for an alias of it, in a graph without writes that reach further."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
