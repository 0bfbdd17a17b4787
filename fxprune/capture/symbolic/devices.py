"""What a model's code asks of devices: on another one it makes the same graph, or the result refuses that."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx

from fxprune.graph.example import Example
from fxprune.graph.own_nodes import guard_device

__all__ = ["OF_DEVICES", "DeviceQuestions", "differs_elsewhere", "guard_device_of"]

OF_DEVICES = ("is_cuda", "is_cpu", "is_xpu", "is_mps", "is_mtia", "is_hpu", "is_maia")


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
