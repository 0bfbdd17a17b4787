"""What a specification prints: only what differs from the simplest one."""

from __future__ import annotations

import dataclasses
from typing import Any


class Brief:
    """A dataclass's `repr` without the fields that have their default."""

    def __repr__(self) -> str:
        told = [f"{name}={value!r}" for name, value in self._told()]
        return f"{type(self).__name__}({', '.join(told)})"

    def _told(self) -> list[tuple[str, Any]]:
        fields = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        plain = type(self)()
        return [(name, value) for name, value in fields if value != getattr(plain, name)]
