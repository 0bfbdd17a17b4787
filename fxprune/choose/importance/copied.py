"""Run a node that writes in place on copies, where the values before it are needed again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

__all__ = ["copied_operands"]


@contextlib.contextmanager
def copied_operands(env: dict[fx.Node, Any], node: fx.Node) -> Iterator[None]:
    """Put copies in place of what a node is given, meanwhile.

    Nobody reads what it writes there: in a captured graph a write shows in its own result alone.
    """
    originals = {n: env[n] for n in node.all_input_nodes}
    env.update({n: pytree.tree_map_only(Tensor, torch.clone, value) for n, value in originals.items()})
    try:
        yield
    finally:
        env.update(originals)
