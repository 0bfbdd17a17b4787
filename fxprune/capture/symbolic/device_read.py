"""What code that is traced learns of the device of a value."""

from __future__ import annotations

import sys
import types
from typing import Any

import torch

from fxprune.capture.devices import names_a_device

__all__ = ["DeviceRead"]


class DeviceRead:
    """Answer for `x.device`: its kind is a word that other code compares and looks up, its number a number.

    Mixed into a proxy with a `tracer`, which notes each line that asks.
    """

    def __getattr__(self, name: str) -> Any:
        if name == "type":
            return self.tracer.kind_of_device(self)
        if name == "index":
            return self.tracer.index_of_device(self)
        return super().__getattr__(name)  # type: ignore[misc]

    def __hash__(self) -> int:
        return super().__hash__()

    def __eq__(self, other: object) -> Any:
        """Compare; beside a device that the code names, as its kind is told."""
        named = _named(other, sys._getframe(1))
        return super().__eq__(other) if named is None else self.tracer.lies_on(self, named)

    def __ne__(self, other: object) -> Any:
        named = _named(other, sys._getframe(1))
        return super().__ne__(other) if named is None else not self.tracer.lies_on(self, named)

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __str__(self) -> str:
        word: str = self.tracer.kind_of_device(self)
        return word


def _named(other: object, caller: types.FrameType) -> torch.device | None:
    """Return a device that the caller's statement names; None for anything else, as another tensor's."""
    device = isinstance(other, torch.device) and names_a_device(caller.f_code, caller.f_lasti)
    return other if device else None  # type: ignore[return-value]
