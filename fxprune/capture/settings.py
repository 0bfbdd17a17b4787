"""What layers hold beside their weights: a graph calls them as they are, not as code sets them on its way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from fxprune.capture.held_places import is_torchs
from fxprune.graph.nests import PLAIN

__all__ = ["Settings"]


class Settings:
    """The settings of some layers as they were when this was made: sizes, numbers, words, and the mode."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._layers = {id(part): part for layer in layers for part in layer.modules()}
        self._before = {key: _settings(part) for key, part in self._layers.items()}

    def note_mode(self) -> None:
        """Take the mode that the layers are in from here on for theirs."""
        for key, part in self._layers.items():
            self._before[key]["training"] = part.training

    def changed(self, layer: nn.Module) -> str | None:
        """Name a setting that code gave another value; None if there is none, or if the layer is unknown."""
        known = ((part, self._before.get(id(part))) for part in layer.modules())
        return next((name for part, before in known if before and (name := _changed(part, before))), None)


def _settings(layer: nn.Module) -> dict[str, Any]:
    held = {name: v for name, v in vars(layer).items() if not is_torchs(name)}
    copied = {name: [*v] for name, v in held.items() if type(v) is list}
    return {"training": layer.training, **held, **copied}


def _changed(layer: nn.Module, before: dict[str, Any]) -> str | None:
    """Name a setting of one layer that is another; what code only keeps on it, its own code can't ask for."""
    now = _settings(layer)
    for name in {**before, **now}:
        asked = name in before or hasattr(type(layer), name)
        if asked and not _same(before.get(name, before), now.get(name, now)):
            return name
    return None


def _same(a: Any, b: Any) -> bool:
    """Are two settings equal?  A stand-in for a number is never asked."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, PLAIN) and bool(a == b)
