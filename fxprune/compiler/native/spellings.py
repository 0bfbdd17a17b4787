"""Find the sizes that modules' code computes, and what each may have become: where only code says them.

An expression is one if it gives the same whole number whenever the original's module is called, whatever the
number and the height of its images, and the number of its tokens.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.compiler.native.calls import CallOptions
from fxprune.compiler.native.noting import calls_noted, functions_of, numbers_noted
from fxprune.compiler.native.proposals import Options
from fxprune.compiler.native.scopes import Scope
from fxprune.compiler.native.sizes import Sizes
from fxprune.graph.example import Example
from fxprune.result.own_calls import Made
from fxprune.result.own_code import Slot
from fxprune.result.own_spelling import Place, Source, source_of, spelled_class

__all__ = ["AS_WRITTEN", "SpelledSlot", "Spellings"]

_Numbers = Mapping[str, dict[Place, int]]  # by a module's path
_Ways = Mapping[str, dict[Place, list[Made]]]

AS_WRITTEN = 0  # the number of a place where the code says what it always said


@dataclass
class Spellings:
    """The sizes in the code of a model's modules; not frozen: it looks at a class when it is asked of one.

    examples: on which the original runs.
    look_at_calls: makes what finds how calls in the code can be made.
    known: what the code of a class computes, and how its calls can be made.
    classes: what a module's class was before its code was edited, by path.
    chosen: the numbers that stand in a module's code by now, by path.
    """

    model: nn.Module
    sizes: Mapping[str, Sizes]
    examples: Sequence[Example]
    look_at_calls: Callable[[], CallOptions]
    known: dict[type, tuple[_Numbers, _Ways]] = field(default_factory=dict)
    classes: dict[str, type[nn.Module]] = field(default_factory=dict)
    chosen: dict[str, dict[Place, int]] = field(default_factory=lambda: defaultdict(dict))

    def options(self, scope: Scope, root: nn.Module) -> Options:
        """List every size that a module's own code computes, and what it may have become.

        If `wide`, also those of attributes, which state has.  Then the calls that can be made otherwise.
        """
        module = self.model.get_submodule(scope.path)
        if "torch" in (_library(module), _library(root.get_submodule(scope.path))):
            return []
        numbers, calls = self._known(type(module))
        found: Options = []
        for place, old in numbers.get(scope.path, {}).items():
            news = [n for n in self._may_be(scope.path, old) if n != old]
            if news and (scope.wide or not _is_attribute(place)):
                # The old one, too: what it is made of may have another.
                slot = SpelledSlot(scope.path, (place.attribute,), 0, place=place, old=old, spellings=self)
                found.append((slot, [*news, old, AS_WRITTEN]))
        for place, ways in calls.get(scope.path, {}).items():
            called = SpelledSlot(
                scope.path, (place.attribute,), 0, place=place, old=0, spellings=self, ways=tuple(ways)
            )
            found.append((called, [*range(1, len(ways) + 1), AS_WRITTEN]))
        return found

    def _known(self, cls: type) -> tuple[_Numbers, _Ways]:
        if cls not in self.known:
            sources = [
                source for function in functions_of(cls) if (source := source_of(function)) is not None
            ]
            self.known[cls] = self._numbers(cls, sources), self._ways_of_calls(cls, sources)
        return self.known[cls]

    def write(self, module: nn.Module, slot: SpelledSlot, new: int) -> None:
        """Let the code of a module have another size at a place, or again what stands there."""
        path, place = slot.path, slot.place
        chosen, state = self.chosen[path], vars(module)
        if new == AS_WRITTEN:
            chosen.pop(place, None)
            state.pop(place.attribute, None)
        else:
            chosen[place], state[place.attribute] = new, slot.meaning(new)
        cls = self.classes.setdefault(path, type(module))
        module.__class__ = spelled_class(cls, tuple(sorted(chosen))) if chosen else cls

    def _may_be(self, path: str, old: int) -> list[int]:
        found = self.sizes[path].may_be(old)
        while path and not found:
            path = path.rpartition(".")[0]
            found = self.sizes[path].may_be(old)
        return found

    def _numbers(self, cls: type, sources: Sequence[Source]) -> _Numbers:
        """Run the original; for each module of a class, what numbers its expressions always give."""
        seen: dict[tuple[str, Place], set[Any]] = defaultdict(set)
        try:
            for example in self.examples if sources else ():
                numbers_noted(self.model, cls, sources, example, seen)
        except Exception:  # code that can't be looked at so
            return {}
        with contextlib.suppress(Exception):  # not every model takes more tokens
            numbers_noted(self.model, cls, sources, self.examples[0].map(_longer), seen)
        found: dict[str, dict[Place, int]] = defaultdict(dict)
        for (path, place), values in seen.items():
            (value,) = values if len(values) == 1 else (None,)
            if type(value) is int and value > 1:
                found[path][place] = value
        return found

    def _ways_of_calls(self, cls: type, sources: Sequence[Source]) -> _Ways:
        """Run the original; for each module of a class, how calls in its code can be made."""
        try:
            calls = calls_noted(self.model, cls, sources, self.examples[0]) if sources else {}
        except Exception:  # code that can't be looked at so
            return {}
        if not calls:
            return {}
        others = []
        for example in (*self.examples[1:], self.examples[0].map(_longer)):
            with contextlib.suppress(Exception):  # not every model takes other sizes
                others.append(calls_noted(self.model, cls, sources, example))
        return self._call_options.options(calls, others, lambda path, n: bool(self._may_be(path, n)))

    @cached_property
    def _call_options(self) -> CallOptions:
        return self.look_at_calls()


@dataclass(frozen=True)
class SpelledSlot(Slot):
    """A size at a place in a module's code; `AS_WRITTEN`, until a number is written.

    ways: in which a call there can be made; the number counts them, from one.
    """

    place: Place = field(kw_only=True)
    old: int = field(kw_only=True)
    spellings: Spellings = field(kw_only=True, compare=False, repr=False)
    ways: tuple[Made, ...] = field(kw_only=True, compare=False, repr=False, default=())

    def meaning(self, number: int) -> int | Made:
        """Return what the attribute is for a number."""
        return self.ways[number - 1] if self.ways else number

    def __str__(self) -> str:
        return f"{self.path}.{self.place.method}: {self.place.text}"

    def read(self, root: nn.Module) -> int:
        return self.spellings.chosen[self.path].get(self.place, AS_WRITTEN)

    def write(self, root: nn.Module, new: float) -> None:
        if new != self.read(root):
            self.spellings.write(root.get_submodule(self.path), self, int(new))


def _library(module: nn.Module) -> str:
    return type(module).__module__.partition(".")[0]


def _longer(t: Tensor) -> Tensor:
    """Repeat tokens, or what they have become: a number of them is no width."""
    return torch.cat([t, t], 1) if t.ndim in (2, 3) else t


def _is_attribute(place: Place) -> bool:
    """Is it the name of what some object has?"""
    return "." in place.text and not place.name and all(word.isidentifier() for word in place.text.split("."))
