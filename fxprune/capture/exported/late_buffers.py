"""Buffers that code makes in a call: torch.export takes them for inputs, and writes to those."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["late_buffers_as_attributes"]


@contextlib.contextmanager
def late_buffers_as_attributes(model: nn.Module) -> Iterator[None]:
    """Let buffers that are None, or that a call registers, be plain attributes.

    torch.export counts buffers after the call and places before it, so that it takes the input for the last
    buffer: its program copies the buffer's numbers over the input.
    """
    with contextlib.ExitStack() as ends:
        for module in model.modules():
            empty = [name for name, buffer in module._buffers.items() if buffer is None]
            order = list(module._buffers)
            for name in empty:
                del module._buffers[name]
                module.__dict__[name] = None
            module.__dict__["register_buffer"] = functools.partial(_keep, module)
            ends.callback(_put_back, module, order, empty)
        yield


def _keep(module: nn.Module, name: str, tensor: Any, persistent: bool = True) -> None:
    if name in module._buffers:  # torch goes this way when code assigns to a buffer
        type(module).register_buffer(module, name, tensor, persistent)
    else:
        module.__dict__[name] = tensor


def _put_back(module: nn.Module, order: list[str], empty: list[str]) -> None:
    """Let empty buffers be buffers again; what the call wrote to the others is theirs."""
    for name in ("register_buffer", *empty):
        module.__dict__.pop(name, None)
    buffers = {name: module._buffers.get(name) for name in order} | module._buffers
    module._buffers.clear()
    module._buffers.update(buffers)
