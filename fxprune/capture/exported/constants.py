"""Tensors that code makes as it runs, which torch.export lifts out of it: one name each, in every export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["constants_hidden", "name_of_constant"]

_LIFTED = "lifted_tensor_"


def name_of_constant(model: nn.Module, source: nn.Module, name: str) -> str | None:
    """Give the model a tensor that export found, as a buffer that is never saved, and return its name there.

    Another tensor that has this name keeps it.  None of what is no tensor.
    """
    value: Any = source
    for part in name.split("."):
        value = getattr(value, part)
    if not isinstance(value, Tensor):
        return None
    path, _, leaf = name.rpartition(".")
    owner = model
    for part in path.split(".") if path else ():
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    while leaf.startswith(_LIFTED) and hasattr(owner, leaf) and not _is_same(getattr(owner, leaf), value):
        leaf += "_"
    if not hasattr(owner, leaf):
        owner.register_buffer(leaf, value.detach(), persistent=False)
    return f"{path}.{leaf}".lstrip(".")


@contextlib.contextmanager
def constants_hidden(model: nn.Module) -> Iterator[None]:
    """Keep what an export lifted out of the next one, which would number its own behind it."""
    lifted = [
        (m, name, buffer)
        for m in model.modules()
        for name, buffer in m._buffers.items()
        if name.startswith(_LIFTED) and name in m._non_persistent_buffers_set
    ]
    for module, name, _ in lifted:
        del module._buffers[name]
    try:
        yield
    finally:
        for module, name, buffer in lifted:
            module._buffers[name] = buffer


def _is_same(a: Tensor, b: Tensor) -> bool:
    alike = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
    return alike and (a.is_meta or torch.equal(a, b))
