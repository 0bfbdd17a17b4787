"""Buffers that code makes in a call: torch.export takes them for inputs, and writes to those."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from fxprune.capture.patched import patch
from fxprune.graph.process_lock import this_thread_only

__all__ = ["late_buffers_as_attributes"]


@contextlib.contextmanager
def late_buffers_as_attributes(model: nn.Module) -> Iterator[None]:
    """Let buffers that are None, or that a call registers, be plain attributes.

    torch.export counts buffers after the call and places before it, so that it takes the input for the last
    buffer: its program copies the buffer's numbers over the input.
    """
    here, modules, register = this_thread_only(), {*model.modules()}, nn.Module.register_buffer

    def keep(module: nn.Module, name: str, tensor: Any, persistent: bool = True) -> None:
        if here() and module in modules and name not in module._buffers:
            module.__dict__[name] = tensor
        else:  # torch goes this way when code assigns to a buffer
            register(module, name, tensor, persistent)

    with contextlib.ExitStack() as ends:
        patch(ends, nn.Module, "register_buffer", keep)
        for module in modules:
            empty = [name for name, buffer in module._buffers.items() if buffer is None]
            ends.callback(_put_back, module, list(module._buffers), empty)
            for name in empty:
                del module._buffers[name]
                module.__dict__[name] = None
        yield


def _put_back(module: nn.Module, order: list[str], empty: list[str]) -> None:
    """Let empty buffers be buffers again; what the call wrote to the others is theirs."""
    if empty:
        for name in empty:
            module.__dict__.pop(name, None)
        buffers = {name: module._buffers.get(name) for name in order} | module._buffers
        module._buffers.clear()
        module._buffers.update(buffers)
