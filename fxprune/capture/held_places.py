"""Where code keeps values from one call to the next: one container each, and what it held."""

from __future__ import annotations

import builtins
import functools
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import Tensor, nn

from fxprune.graph.nests import PLAIN

__all__ = [
    "KINDS",
    "BufferPlace",
    "CellPlace",
    "ClassPlace",
    "GlobalPlace",
    "ModulePlace",
    "Place",
    "is_data",
    "is_torchs",
    "items_of",
]

_LARGEST = 1 << 20  # elements of a tensor that is saved
_TORCHS = {"training", "_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"}
_TRACINGS = ("_tensor_constant", "_torchbind_obj", "_is_full_backward")
Contents = dict[Any, Any]


class Place:
    """One container, here a dict, and what it held.

    inside: its parts are named as the whole is.
    """

    def __init__(self, holder: Any, name: str, inside: bool = True) -> None:
        self.holder, self.name, self.inside = holder, name, inside
        self.before = self.contents()
        self.versions = {key: v._version for key, v in self.before.items() if _counts_writes(v)}
        self.values = {key: v.detach().clone() for key, v in self.saved().items()}

    def saved(self) -> dict[Any, Tensor]:
        """Select the tensors whose numbers are put back, were they written to."""
        return {k: v for k, v in self.before.items() if _counts_writes(v) and v.numel() <= _LARGEST}

    def contents(self) -> Contents:
        return items_of(self.holder)

    def changed(self) -> Iterator[str]:
        now = self.contents()
        for key in {**self.before, **now}:
            if not _same(self.before.get(key, self), now.get(key, self)) or self._is_written(key):
                yield self.name if self.inside else f"{self.name}.{key}".lstrip(".")

    def restore(self, plain: bool) -> None:
        self.rewrite()
        now = self.contents()
        if list(now) != list(self.before) or any(now[key] is not v for key, v in self.before.items()):
            self.put(self.before)

    def put(self, contents: Contents) -> None:
        self.holder.clear()
        write = OrderedDict.__setitem__ if isinstance(self.holder, OrderedDict) else dict.__setitem__
        for key, value in contents.items():
            write(self.holder, key, value)

    def rewrite(self) -> None:
        """Put back the numbers of tensors that were written to."""
        for key, value in self.values.items():
            if self._is_written(key):
                self.before[key].detach().copy_(value)
                self.versions[key] = self.before[key]._version

    def _is_written(self, key: Any) -> bool:
        return key in self.versions and self.before[key]._version != self.versions[key]


class ModulePlace(Place):
    """What a module holds, but for what torch keeps there."""

    buffers: BufferPlace | None = None  # of the same module

    def contents(self) -> Contents:
        return {k: v for k, v in self.holder.items() if not is_torchs(k)}

    def keeps_more(self) -> bool:
        """Did code put more there, or into the buffers, than numbers, flags and words?"""
        now = self.contents()
        kept = (value for key, value in now.items() if value is not self.before.get(key))
        more = any(not isinstance(value, PLAIN) for value in kept)
        return more or (self.buffers is not None and self.buffers.keeps_more())

    def restore(self, plain: bool) -> None:
        self.rewrite()
        now = self.contents()
        # A table goes with the flag that says that it is there, or for how many positions.
        plain = plain or self.keeps_more()
        for key in [k for k in now if k not in self.before and (plain or not isinstance(now[k], PLAIN))]:
            del self.holder[key]
        for key, value in self.before.items():
            both = value, now.get(key, ...)
            if both[1] is not value and (plain or not all(isinstance(v, PLAIN) for v in both)):
                self.holder[key] = value


class BufferPlace(ModulePlace):
    """A module's buffers: no capture writes to those, which may be large."""

    def saved(self) -> dict[Any, Tensor]:
        return {}


class ListPlace(Place):
    def contents(self) -> Contents:
        return dict(enumerate(self.holder))

    def put(self, contents: Contents) -> None:
        self.holder.clear()
        self.holder.extend(contents.values())


class SetPlace(Place):
    def contents(self) -> Contents:
        return dict.fromkeys(self.holder)

    def put(self, contents: Contents) -> None:
        self.holder.clear()
        self.holder.update(contents)


class CellPlace(Place):
    def contents(self) -> Contents:
        return {0: self.holder.cell_contents}

    def put(self, contents: Contents) -> None:
        self.holder.cell_contents = contents[0]


class GlobalPlace(Place):
    """Values of a file that some code refers to, and whatever code put under such names since."""

    def __init__(self, holder: Any, name: str, names: Collection[str]) -> None:
        self.names = names
        self.known = {n for n in names if n in holder or n in vars(builtins)}  # (a capture shadows builtins)
        super().__init__(holder, name, inside=False)

    def contents(self) -> Contents:
        found = {name: self.holder[name] for name in self.names if name in self.holder}
        return {name: value for name, value in found.items() if is_data(value) or name not in self.known}

    def put(self, contents: Contents) -> None:
        for name in self.contents().keys() - contents.keys():
            del self.holder[name]
        self.holder.update(contents)


class ClassPlace(Place):
    """What a class holds beside code, and whatever code gave it since."""

    def __init__(self, holder: Any) -> None:
        self.known = {*vars(holder)}
        super().__init__(holder, holder.__name__, inside=False)

    def contents(self) -> Contents:
        found = {name: value for name, value in vars(self.holder).items() if not name.startswith("__")}
        return {name: value for name, value in found.items() if is_data(value) or name not in self.known}

    def put(self, contents: Contents) -> None:
        for name in self.contents().keys() - contents.keys():
            delattr(self.holder, name)
        for name, value in contents.items():
            setattr(self.holder, name, value)


KINDS: dict[type, Callable[[Any, str], Place]] = {
    dict: Place,
    list: ListPlace,
    deque: ListPlace,
    set: SetPlace,
}


def items_of(holder: dict[Any, Any]) -> Contents:
    """Read what a dict holds, not what a class of it makes of that when asked."""
    return dict(dict.items(holder))  # (a stand-in as a key may hash otherwise by now)


@functools.lru_cache(1 << 14)
def is_torchs(name: str) -> bool:
    """Is it an attribute of any module, or one that tracing adds?"""
    return name in _TORCHS or name.endswith("_hooks") or "_hooks_" in name or name.startswith(_TRACINGS)


def is_data(value: Any) -> bool:
    """Is it a value that code may have kept, rather than code?"""
    return isinstance(value, (*PLAIN, Tensor, dict, list, deque, set, tuple))


def _counts_writes(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and not value.is_inference()


def _same(before: Any, now: Any) -> bool:
    plain = isinstance(before, PLAIN) and type(before) is type(now)
    return before is now or (plain and (before == now or before != before))
