"""What a model's code asks of devices: on another one it makes the same graph, or the result refuses that."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.capture.patched import patch
from fxprune.graph.example import Example
from fxprune.graph.own_nodes import guard_device
from fxprune.graph.process_lock import this_thread_only
from fxprune.graph.source_files import is_users

__all__ = [
    "OF_DEVICES",
    "TOLD_BY_TENSORS",
    "DeviceQuestions",
    "differs_elsewhere",
    "guard_device_of",
    "told_of_another",
]

OF_DEVICES = ("is_cuda", "is_cpu", "is_xpu", "is_mps", "is_mtia", "is_hpu", "is_maia")
TOLD_BY_TENSORS = tuple(name for name in OF_DEVICES if hasattr(Tensor, name))


class DeviceQuestions:
    """The answers to code that asks for a kind of device, and the lines that asked.

    elsewhere: answer as on another kind than the example's.
    """

    def __init__(self, elsewhere: bool) -> None:
        self.elsewhere = elsewhere
        self.lines: dict[str, None] = {}

    def kind(self, device: torch.device, line: str | None = None) -> str:
        """Return the word for a device's kind; a line that asks for it is noted."""
        if line is not None:
            self.lines[line] = None
        return _other(device.type) if self.elsewhere else device.type


def _other(kind: str) -> str:
    return "cuda" if kind == "cpu" else "cpu"


@contextlib.contextmanager
def told_of_another(kind: str) -> Iterator[None]:
    """Answer a model's code that asks tensors for a kind of device as on another one, in this thread."""
    here, other = this_thread_only(), f"is_{_other(kind)}"

    def told(name: str, of: Any) -> property:
        def get(tensor: Tensor) -> bool:
            users = here() and is_users(sys._getframe(1).f_code.co_filename)
            return name == other if users else bool(of.__get__(tensor))

        return property(get)

    with contextlib.ExitStack() as patches:
        for name in TOLD_BY_TENSORS:
            patch(patches, Tensor, name, told(name, getattr(Tensor, name)))
        yield


def differs_elsewhere(graph: fx.Graph, elsewhere: Callable[[], fx.Graph], device: torch.device) -> bool:
    """Does the model's code make another graph on another kind of device?

    elsewhere: traces it with the answers of that kind.
    """
    try:
        return _spelled(graph, device) != _spelled(elsewhere(), device)
    except Exception:  # whatever user code raises for want of such a device
        return True


def guard_device_of(graph: fx.Graph, example: Example, lines: Iterable[str]) -> None:
    """Let a graph refuse inputs on another kind of device than the example's."""
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    given = zip(inputs, (*example.args, *example.kwargs.values()), strict=False)
    for node, value in given:
        if isinstance(value, Tensor):
            with graph.inserting_before(inputs[-1].next):
                of = graph.call_function(getattr, (node, "device"))
                kind = graph.call_function(getattr, (of, "type"))
                graph.call_function(guard_device, (kind, value.device.type), {"where": next(iter(lines))})
            return


def _spelled(graph: fx.Graph, device: torch.device) -> str:
    """Spell a graph alike on both kinds."""
    return str(graph).replace(_other(device.type), device.type)
