"""How per-op knowledge is written down: a `Flow`, and three ways to register a rule that returns one.

    elementwise("gelu", "silu")                 a table: every tensor argument broadcasts
    passing("roll", frozen="dims")              a one-line helper (see the op families)
    @rule("linear") def linear_axes(...)        a function

A rule is pure.  It is called with the arguments of the op, bound to its own signature: tensors as
`Typed` (one axis per dimension), everything else as its value while tracing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fxprune.axes import Axis

Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class Typed:
    """A tensor as rules see it: one axis per dimension."""

    axes: Axes

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def ndim(self) -> int:
        return len(self.axes)


@dataclass(frozen=True)
class Bound:
    """An index that a call spells: the size of what lies before it, or, if negative, from it to the end."""

    axis: Axis


@dataclass
class Flow:
    """What a rule says about one call.

    out: the axes of the result, a tuple per tensor; lists of them where the op returns several.
    same: pairs of axes that must be equal.
    whole: axes that must not shrink, each with the reason in words.
    sizes: for an argument that spells sizes as integers, the axes spelled, in the argument's shape
        (None where an element spells nothing; a list of axes may stand for a single integer).  An
        index is spelled by a `Bound`.
    target: the function to call instead once `sizes` are rewritten, if the op itself can't take them.
    sums: axes over which the op adds up, or takes a statistic: where a missing channel is missed.
    macs: for each product that the op takes, the axes that its multiplications run over.
    selected: the call is made at full size, and what is kept selected from its result.
    """

    out: Any
    same: list[tuple[Axis, Axis]] = field(default_factory=list)
    whole: list[tuple[Axis, str]] = field(default_factory=list)
    sizes: dict[str, Any] = field(default_factory=dict)
    target: Callable[..., Any] | None = None
    sums: list[Axis] = field(default_factory=list)
    macs: list[Axes] = field(default_factory=list)
    selected: bool = False


@dataclass(frozen=True)
class Rule:
    """A rule and the signature that its op's arguments are bound to."""

    op: str
    function: Callable[..., Flow]
    signature: inspect.Signature

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
        return self.signature.bind(*args, **kwargs)


class RuleSet:
    """Op name -> rule.  Immutable in use: `extended` returns a new set."""

    def __init__(self, rules: Mapping[str, Rule] | None = None) -> None:
        self._rules = dict(rules or {})

    def __contains__(self, op: str) -> bool:
        return op in self._rules

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._rules))

    def get(self, op: str) -> Rule | None:
        return self._rules.get(op)

    def add(self, op: str, function: Callable[..., Flow]) -> None:
        if op in self._rules:
            raise ValueError(f"a rule for {op!r} exists: {self._rules[op].function.__name__}")
        self._rules[op] = Rule(op, function, inspect.signature(function))

    def extended(self, rules: Mapping[str, Callable[..., Flow]]) -> RuleSet:
        """A copy with rules for a user's own ops added or replaced.

        >>> from fxprune.rules import DEFAULT_RULES, Flow
        >>> mine = DEFAULT_RULES.extended({"my_gate": lambda x, g: Flow(x.axes, same=[*zip(x.axes, g.axes)])})
        >>> fxprune.prune(model, 0.5, rules=mine)  # doctest: +SKIP
        """
        new = RuleSet({op: r for op, r in self._rules.items() if op not in rules})
        for op, function in rules.items():
            new.add(op, function)
        return new


DEFAULT_RULES = RuleSet()


def rule(*ops: str) -> Callable[[Callable[..., Flow]], Callable[..., Flow]]:
    """Register the decorated function for one or more spellings of an op."""

    def register(function: Callable[..., Flow]) -> Callable[..., Flow]:
        for op in ops:
            DEFAULT_RULES.add(op, function)
        return function

    return register


def at(dim: int, ndim: int) -> int:
    """A dimension as a non-negative number."""
    return dim + ndim if dim < 0 else dim


def dims_of(dim: int | list[int] | tuple[int, ...] | None, ndim: int) -> list[int]:
    """Any spelling of a set of dimensions (one, several, None for all) as non-negative numbers."""
    if dim is None or dim == [] or dim == ():
        return list(range(ndim))
    return [at(d, ndim) for d in ([dim] if isinstance(dim, int) else dim)]
