"""Mutants of rules: the same rule with one fact of its `Flow` left out.

same[0]       the first unification is dropped
frozen[1]     the second axis that must keep its elements may shrink
thaw[0]       the first axis that the rule itself makes, and makes frozen, may shrink
sizes[shape]  the integers of an argument that spell sizes are not rewritten
bound[0]      one end of a slice that spells a size is not rewritten
out[-1]       the result's last axis has nothing to do with the operands'
replacement   the op is called still where its sizes can't be written
rule          there is no rule
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fxprune import DEFAULT_RULES, Flow
from fxprune.rules.axes import ONE, Atom, Axis, Product, Sum, atoms_of
from fxprune.rules.registry import Bound, Typed

Key = tuple[Any, ...]


@dataclass(frozen=True)
class RuleMutant:
    """The rule of one op without one fact."""

    op: str
    key: Key

    @property
    def kind(self) -> str:
        return self.key[0]

    def __str__(self) -> str:
        fact = f"{self.key[0]}[{self.key[1]}]" if self.key[1:] else self.key[0]
        return f"{self.op}: {fact}"

    def apply(self) -> None:
        """Put it in the place of the rule, in this process."""
        rules = DEFAULT_RULES._rules
        if self.kind == "rule":
            del rules[self.op]
            return
        old = rules[self.op]
        rules[self.op] = replace(old, function=_watched(old.function, self._without))

    def _without(self, flow: Flow, given: set[Atom]) -> Flow:
        return without(flow, self.key, given) if self.key in facts_of(flow, given) else flow


def watch(met: Callable[[str, set[Key]], None]) -> None:
    """Tell the facts of every call of every rule from now on."""

    def telling(op: str) -> Callable[[Flow, set[Atom]], Flow]:
        def tell(flow: Flow, given: set[Atom]) -> Flow:
            met(op, {("rule",), *facts_of(flow, given)})
            return flow

        return tell

    for op, rule in DEFAULT_RULES._rules.items():
        DEFAULT_RULES._rules[op] = replace(rule, function=_watched(rule.function, telling(op)))


def unwatch() -> None:
    for op, rule in DEFAULT_RULES._rules.items():
        DEFAULT_RULES._rules[op] = replace(rule, function=rule.function.__wrapped__)  # type: ignore[attr-defined]


def _watched(function: Callable[..., Flow], then: Callable[[Flow, set[Atom]], Flow]) -> Callable[..., Flow]:
    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Flow:
        given = {a for t in _typed_in([args, kwargs]) for axis in t.axes for a in atoms_of(axis)}
        return then(function(*args, **kwargs), given)

    return called


def facts_of(flow: Flow, given: set[Atom]) -> set[Key]:
    """What a flow states and could leave out; `given` are the atoms of the operands."""
    found: set[Key] = {("same", i) for i, (a, b) in enumerate(flow.same) if a != b}
    found |= {("frozen", i) for i, (axis, _) in enumerate(flow.frozen) if _is_free(axis)}
    found |= {("thaw", i) for i, _ in enumerate(_born_frozen(flow, given))}
    found |= {("sizes", name) for name, spelled in flow.sizes.items() if any(_leaves(spelled))}
    bounds = [leaf for leaf in _leaves(list(flow.sizes.values())) if isinstance(leaf, Bound)]
    found |= {("bound", i) for i, _ in enumerate(bounds)}
    for axes in _results(flow.out):
        found |= {("out", i - len(axes)) for i, axis in enumerate(axes) if axis != ONE}
    return found | ({("replacement",)} if flow.replacement else set())


def without(flow: Flow, key: Key, given: set[Atom]) -> Flow:
    """The flow with one of its facts left out."""
    kind, which = (*key, None)[:2]
    if kind == "same":
        return replace(flow, same=[pair for i, pair in enumerate(flow.same) if i != which])
    if kind == "frozen":
        return replace(flow, frozen=[entry for i, entry in enumerate(flow.frozen) if i != which])
    if kind == "sizes":
        return replace(flow, sizes={name: s for name, s in flow.sizes.items() if name != which})
    if kind == "bound":
        dropped = [leaf for leaf in _leaves(list(flow.sizes.values())) if isinstance(leaf, Bound)][which]
        return replace(flow, sizes=_mapped(flow.sizes, lambda leaf: None if leaf is dropped else leaf))
    if kind == "replacement":
        return replace(flow, replacement=None)
    if kind == "out":
        return replace(flow, out=_let_go(flow.out, which))
    cold = _born_frozen(flow, given)[which]
    warm = Atom(cold.size)

    def thawed(leaf: Any) -> Any:
        if isinstance(leaf, Bound):
            return Bound(_exchanged(leaf.axis, cold, warm))
        return leaf if isinstance(leaf, str) else _exchanged(leaf, cold, warm)

    return replace(
        flow,
        out=_mapped(flow.out, thawed),
        same=_mapped(flow.same, thawed),
        frozen=[(thawed(axis), reason) for axis, reason in flow.frozen],
        sizes=_mapped(flow.sizes, thawed),
    )


def _typed_in(value: Any) -> Iterator[Typed]:
    """Every tensor in nested arguments of a rule."""
    if isinstance(value, Typed):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _typed_in(item)


def _is_free(axis: Axis) -> bool:
    return any(a.frozen is None and a.size > 1 for a in atoms_of(axis))


def _born_frozen(flow: Flow, given: set[Atom]) -> list[Atom]:
    """Atoms that the rule makes frozen, in order."""
    terms = [axis for axes in _results(flow.out) for axis in axes]
    terms += [axis for pair in flow.same for axis in pair]
    made = dict.fromkeys(a for term in terms for a in atoms_of(term) if a not in given)
    return [a for a in made if a.frozen is not None and a.size > 1]


def _results(out: Any) -> list[tuple[Axis, ...]]:
    return [axes for part in out for axes in _results(part)] if isinstance(out, list) else [tuple(out)]


def _let_go(out: Any, dim: int) -> Any:
    """Every result's axis at `dim` (counted from the end) as one that nothing is known of."""
    if isinstance(out, list):
        return [_let_go(part, dim) for part in out]
    return tuple(
        Atom(axis.size) if i - len(out) == dim and axis != ONE else axis for i, axis in enumerate(out)
    )


def _exchanged(axis: Axis, old: Atom, new: Atom) -> Axis:
    if isinstance(axis, Atom):
        return new if axis is old else axis
    parts = [_exchanged(part, old, new) for part in axis.parts]
    return Product.of(parts) if isinstance(axis, Product) else Sum.of(parts)


def _leaves(value: Any) -> Iterator[Any]:
    """Axes and bounds in a nest."""
    if isinstance(value, slice):
        value = [value.start, value.stop]
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    elif value is not None:
        yield value


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, slice):
        return slice(_mapped(value.start, function), _mapped(value.stop, function))
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, function) for item in value)
    if isinstance(value, dict):
        return {k: _mapped(v, function) for k, v in value.items()}
    return None if value is None else function(value)
