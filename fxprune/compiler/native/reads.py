"""Note which attributes a model's code looks at."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from fxprune.compiler.native.slots import holders_of
from fxprune.graph.classes import subclass_of
from fxprune.result.own_code import Slot

__all__ = ["Reads", "reads_noted"]

_identity = id  # a capture that goes on meanwhile watches who asks for it, and asks for a class itself


class Reads:
    """The attributes that were looked at: of a module, or of an object that it holds, at `keys`."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, tuple[Any, ...]]] = set()
        self.deaf: set[tuple[str, tuple[Any, ...]]] = set()  # objects of which nothing can be noted

    def note(self, path: str, keys: tuple[Any, ...], name: str) -> None:
        self.seen.add((path, (*keys, name)))

    def has(self, slot: Slot) -> bool:
        """Return whether the attribute that holds the number was read."""
        of_deaf = (slot.path, slot.keys[: slot.held - 1]) in self.deaf
        return (slot.path, slot.keys[: 1 if of_deaf else slot.held]) in self.seen


@contextlib.contextmanager
def reads_noted(root: nn.Module, reads: Reads, only: Collection[str] | None = None) -> Iterator[None]:
    """Note which attributes code reads meanwhile, by subclasses that tell of each read.

    only: the paths of the modules to watch; all by default.
    """
    own = [
        (path, keys, holder, type(holder))
        for path, keys, holder in holders_of(root)
        if only is None or path in only
    ]
    places = {id(holder): (path, keys) for path, keys, holder, _ in own}
    classes: dict[type, type] = {}

    def noting(cls: type) -> type:
        found: Any = cls.__getattribute__

        def look(self: Any, name: str) -> Any:
            if name[:2] != "__" and (place := places.get(_identity(self))) is not None:
                reads.note(*place, name)
            return found(self, name)

        made: type = subclass_of(cls, {"__getattribute__": look})
        return made

    changed = []
    for path, keys, holder, cls in own:
        if cls not in classes:
            classes[cls] = _made(noting, cls)
        if classes[cls] is not cls:
            object.__setattr__(holder, "__class__", classes[cls])
            changed.append((holder, cls))
        else:
            reads.deaf.add((path, keys))
    try:
        yield
    finally:
        for holder, cls in changed:
            if type(holder) is classes[cls]:  # else its code was spelled anew meanwhile
                object.__setattr__(holder, "__class__", cls)


def _made(noting: Any, cls: type) -> type:
    """Make the noting class; the class itself stands in where there can be none."""
    if not cls.__flags__ & 1 << 9:  # Py_TPFLAGS_HEAPTYPE: a class of Python code
        return cls
    try:
        made: type = noting(cls)
        object.__setattr__(object.__new__(cls), "__class__", made)
    except TypeError:
        return cls
    return made
