"""What code that is traced learns of the device of a value."""

from __future__ import annotations

import sys
from typing import Any

import torch

from fxprune.graph.source_files import is_users

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
        asked = is_users(sys._getframe(1).f_code.co_filename)
        number: int = self.tracer.hash_of_device(self) if asked else id(self)
        return number

    def __eq__(self, other: object) -> Any:
        """Compare; beside a device that is no tensor's, as its kind is told."""
        named = isinstance(other, torch.device) and not self.tracer.is_of_tensor(other)
        return self.tracer.lies_on(self, other) if named else super().__eq__(other)

    def __ne__(self, other: object) -> Any:
        named = isinstance(other, torch.device) and not self.tracer.is_of_tensor(other)
        return not self.tracer.lies_on(self, other) if named else super().__ne__(other)

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __str__(self) -> str:
        word: str = self.tracer.kind_of_device(self)
        return word
