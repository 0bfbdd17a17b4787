"""Say where numbers are looked for that make the code of a module right."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Scope"]


@dataclass(frozen=True)
class Scope:
    """Where numbers are looked for: in a module, less one inside it that was searched before.

    wide: a number may also be a size that only a module around its own knows.
    spelled: sizes that the module's code computes are numbers, too.
    """

    path: str
    less: str | None = None
    wide: bool = False
    spelled: bool = False
