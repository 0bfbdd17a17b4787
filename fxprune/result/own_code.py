"""What makes an instance of the user's own class of a pruned graph, as data."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Literal

from torch import nn

from fxprune.graph.nests import Value
from fxprune.graph.own_nodes import layout_of_argument
from fxprune.result.own_calls import Made
from fxprune.result.own_spelling import Place

__all__ = [
    "Call",
    "Edit",
    "Forward",
    "Keys",
    "Layouts",
    "OneWay",
    "OwnCode",
    "Part",
    "Read",
    "Ref",
    "Slot",
    "Spelling",
    "Table",
    "What",
    "layouts_of",
]

What = Literal["size", "shape", "dtype", "device"]
Layouts = tuple[tuple[str, str], ...]  # (parameter, how its argument is nested)
Keys = tuple[str | int, ...]  # names of attributes, keys of dicts, places in lists


@dataclass(frozen=True)
class Slot:
    """A number, or a tensor, at a place that a module's code can read.

    path: the module's.
    keys: from the module's `__dict__` inward.
    held: how many of the keys lead to the attribute of the innermost object (the module, a configuration).
    """

    path: str
    keys: Keys
    held: int = 1

    def __str__(self) -> str:
        name, *inner = self.keys
        said = "".join(f".{k}" if i < self.held - 1 else f"[{k!r}]" for i, k in enumerate(inner))
        return f"{self.path}.{name}".lstrip(".") + said

    def read(self, root: nn.Module) -> int:
        """Get the number that stands here in a model of the same structure."""
        number: int = _item(self.holder(root), self.keys[-1])
        return number

    def holder(self, root: nn.Module) -> Value:
        """Get what the number stands in: a list, a dict, an object, or the state of the module."""
        value: Value = vars(root.get_submodule(self.path))
        for key in self.keys[:-1]:
            value = _item(value, key)
        return value

    def is_shared(self, one: nn.Module, other: nn.Module) -> bool:
        """Do two models hold the number in one and the same object (a cache), which nobody may write to?"""
        a, b = (vars(m.get_submodule(self.path)) for m in (one, other))
        for key in self.keys[:-1]:
            a, b = _item(a, key), _item(b, key)
            if a is b and not isinstance(a, tuple):
                return True
        return False

    def write(self, root: nn.Module, new: Value) -> None:
        """Put another number, or tensor, here; tuples on the way are made anew."""
        _written(vars(root.get_submodule(self.path)), self.keys, new)


def _item(holder: Value, key: str | int) -> Value:
    inside: Value = holder if isinstance(holder, (dict, list, tuple)) else vars(holder)
    return inside[key]


def _written(holder: Value, keys: Keys, new: Value) -> Value:
    """Put the number into its holder and return it: itself, unless it is a tuple."""
    key, *inner = keys
    value = _written(_item(holder, key), tuple(inner), new) if inner else new
    if isinstance(holder, tuple):
        items = [value if i == key else item for i, item in enumerate(holder)]
        kind: Value = type(holder)
        return kind(*items) if hasattr(holder, "_fields") else kind(items)
    inside: Value = holder if isinstance(holder, (dict, list)) else vars(holder)
    if inside[key] is not value:
        inside[key] = value
    return holder


@dataclass(frozen=True)
class Edit:
    """A number of the original's state, a size or a scale, that the result's code reads as another one."""

    slot: Slot
    old: float
    new: float

    def __str__(self) -> str:
        return f"{self.slot}: {self.old} -> {self.new}"


@dataclass(frozen=True)
class Spelling:
    """A size that a module's code has from an attribute of the module, whatever is written there.

    path: the module's.
    old: what the original's code computes there.
    new: a number; or how the call that is written there is made.
    """

    path: str
    place: Place
    old: int
    new: int | Made

    def __str__(self) -> str:
        said = self.place.name or self.place.text
        where = f"{self.path}.{self.place.method}: {said}".lstrip(".")
        return f"{where} {self.new}" if self.place.call else f"{where}: {self.old} -> {self.new}"

    def write(self, root: nn.Module) -> None:
        """Give the number to a module whose code asks for it."""
        vars(root.get_submodule(self.path))[self.place.attribute] = self.new


@dataclass(frozen=True)
class Ref:
    """A node of the pruned graph, by name, in the place of a value."""

    node: str


@dataclass(frozen=True)
class Read:
    """A size, shape, dtype or device of the model's input, read off one of a module's own inputs."""

    node: str
    of: str
    what: What
    dim: int = 0


@dataclass(frozen=True)
class Part:
    """A module whose own code can't hold the new sizes, and the part of the graph in its place.

    path: the module's.
    why: what its own code said, with the line.
    inputs: (parameter of its `forward`, keys inside the argument, node of the graph that stands there).
    reads: what it knows of the model's input.
    result: what it returns, in lists, tuples and dicts: a `Ref` for each tensor.
    given: (parameter, keys inside the argument, what stands there) of flags, words and numbers that the graph
        does not follow: others are refused.
    layouts: (parameter, how its argument is nested).
    """

    path: str
    why: str
    inputs: tuple[tuple[str, Keys, str], ...]
    reads: tuple[Read, ...]
    result: object
    given: tuple[tuple[str, Keys, Value], ...] = ()
    layouts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Call:
    """A call of one of the user's own modules by a graph that stands for the code around it.

    args, kwargs: in lists, tuples and dicts: a `Ref` for each tensor, and for each size that varies.
    results: (node that the call's result stands for, keys to it inside what the module returns).
    """

    path: str
    args: object
    kwargs: object
    results: tuple[tuple[str, Keys], ...]


@dataclass(frozen=True)
class Forward:
    """The model's `forward` alone, which a graph replaces; the modules that it calls are the user's own.

    opened: the root (""), and modules inside it whose own code is not called any more.
    why: what their code said, with the line.
    calls: in order.
    barred: methods of the model that would run that code.
    """

    opened: tuple[str, ...]
    why: str
    calls: tuple[Call, ...]
    barred: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """What is kept along a dimension of a tensor that a module holds and no training changes.

    path: the module's.
    old: the original's size.
    numbers: (keys, the original's) of numbers in the module's state that its `forward` needs otherwise; where
        there are none, what its code computes is as wide as the original's.
    """

    path: str
    name: str
    dim: int
    old: int
    kept: tuple[int, ...]
    numbers: tuple[tuple[Keys, int], ...] = ()


@dataclass(frozen=True)
class OneWay:
    """A module whose code may read numbers, in other calls than the captured one, that no graph proves.

    path: the module's.
    numbers: which, in words.
    calls: how its arguments were nested in the calls that it had, as of `layouts_of`.
    """

    path: str
    numbers: str
    calls: tuple[Layouts, ...]


def layouts_of(module: nn.Module, args: Value, kwargs: Value) -> Layouts:
    """Spell how the arguments of a call are nested, by the names that the module's code has for them.

    Numbers that have a default are spelled too: they say which way to go; others may follow the input's size.

    Raises:
        TypeError: they do not fit its signature.
    """
    signature = inspect.signature(type(module).forward)
    bound = signature.bind(module, *args, **kwargs)
    bound.apply_defaults()
    numbers = {name for name, p in signature.parameters.items() if isinstance(p.default, (int, float))}
    given = [*bound.arguments.items()][1:]
    return tuple((name, layout_of_argument(value, name in numbers)) for name, value in given)


@dataclass(frozen=True)
class OwnCode:
    """How an instance of the user's own class came about.

    edits: numbers in its state that are no longer the original's.
    parts: modules that their part of the graph replaces.
    forward: what stands for the code of the root, where that can't hold the sizes.
    spellings: sizes that the code of modules has from attributes, where it computes others.
    tables: what modules keep of tensors that their code computes anew at the original's width.
    flags: (path, attribute, value) of switches whose other way is wrong on the new sizes, and refused.
    ways: modules that refuse to be called otherwise than they were.
    unsure: (path, method, numbers) of methods that are refused: they read what may be a width, or none.
    unsaid: why the configuration that its library would save does not build it; nothing, if it does.
    untrained: what its code does wrong in train mode, which it refuses then; nothing, if it does not.
    """

    edits: tuple[Edit, ...] = ()
    parts: tuple[Part, ...] = ()
    unsaid: str = ""
    forward: Forward | None = None
    untrained: str = ""
    spellings: tuple[Spelling, ...] = ()
    tables: tuple[Table, ...] = ()
    flags: tuple[tuple[str, str, bool], ...] = ()
    ways: tuple[OneWay, ...] = ()
    unsure: tuple[tuple[str, str, str], ...] = ()

    @property
    def is_graph(self) -> bool:
        """Is it no instance after all, but the graph itself, since the root can't hold the sizes?"""
        return any(not part.path for part in self.parts)

    @property
    def replaced(self) -> tuple[tuple[str, str], ...]:
        """What the graph stands for, modules and `forward`s by their paths, each with what its code said."""
        opened = self.forward.opened if self.forward else ()
        why = self.forward.why if self.forward else ""
        forwards = [(f"{path}.forward".lstrip("."), why) for path in opened]
        return (*((part.path, part.why) for part in self.parts), *forwards)

    @property
    def is_whole(self) -> bool:
        """Is every module the user's own?"""
        return not self.parts and self.forward is None
