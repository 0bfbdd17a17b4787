"""`x.to(torch.float32)` means that dtype whatever the model's own is; `x.to(weight.dtype)` means the model's.

In a captured graph both are constants.  Captured once more from a copy in another dtype, they differ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.graph.copies import structural_copy
from fxprune.graph.example import Example

__all__ = ["mark_literal_dtypes"]

Trace = Callable[[nn.Module, Example], fx.Graph]


def mark_literal_dtypes(graph: fx.Graph, model: nn.Module, example: Example, trace: Trace) -> None:
    """Set `meta["literal_dtype"]` on nodes whose dtype the code spells, though it is the input's as well.

    Where the copy can't be traced, or takes another way, none is marked: all dtypes follow the input's.
    """
    inputs = pytree.tree_leaves((example.args, example.kwargs))
    dtype = next((t.dtype for t in inputs if isinstance(t, Tensor) and t.is_floating_point()), None)
    if not any(dtype in _dtypes(node) for node in graph.nodes):
        return
    other = torch.float16 if dtype is torch.bfloat16 else torch.bfloat16

    def cast(t: Tensor) -> Tensor:
        if t.dtype is not dtype:
            return t
        blank = torch.empty_like(t, dtype=other)
        return nn.Parameter(blank, t.requires_grad) if isinstance(t, nn.Parameter) else blank

    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        recast = trace(structural_copy(model, cast), example.map(cast))
    except Exception:  # whatever user code raises on a dtype that it does not know
        return
    finally:
        log.setLevel(level)
    if [n.op for n in recast.nodes] != [n.op for n in graph.nodes]:
        return
    for node, same in zip(graph.nodes, recast.nodes, strict=True):
        if dtype in _dtypes(node) and dtype in _dtypes(same):
            node.meta["literal_dtype"] = True


def _dtypes(node: fx.Node) -> Iterator[Any]:
    return (a for a in (*node.args, *node.kwargs.values()) if isinstance(a, torch.dtype))
