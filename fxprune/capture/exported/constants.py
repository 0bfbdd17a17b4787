"""Tensors that code makes as it runs, which torch.export lifts out of it: one name each, in every export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["constants_hidden", "lifted_anew", "name_of_constant"]

_LIFTED = "lifted_tensor_"
_OF_CAPTURE: ContextVar[set[str] | None] = ContextVar("_OF_CAPTURE", default=None)


@contextlib.contextmanager
def lifted_anew() -> Iterator[None]:
    """Start a capture: what the model has by such names is its own."""
    token = _OF_CAPTURE.set(set())
    try:
        yield
    finally:
        _OF_CAPTURE.reset(token)


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
        if (lifted := _OF_CAPTURE.get()) is not None:
            lifted.add(f"{path}.{leaf}".lstrip("."))
    return f"{path}.{leaf}".lstrip(".")


@contextlib.contextmanager
def constants_hidden(model: nn.Module) -> Iterator[None]:
    """Keep what an export lifted out of the next one, which would number its own behind it."""
    named = [name.rpartition(".") for name in _OF_CAPTURE.get() or ()]
    places = [(model.get_submodule(path), name) for path, _, name in named]
    lifted = [(m, name, m._buffers[name]) for m, name in places if name in m._buffers]
    for module, name, _ in lifted:
        del module._buffers[name]
    try:
        yield
    finally:
        for module, name, buffer in lifted:
            module._buffers[name] = buffer


def _is_same(a: Tensor, b: Tensor) -> bool:
    alike = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
    return alike and (a.is_meta or torch.allclose(a, b, rtol=0, atol=0, equal_nan=a.is_floating_point()))
