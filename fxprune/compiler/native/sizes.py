"""What each size that a module's axes have has become."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import nn

from fxprune.analysis.analysis import Analysis
from fxprune.graph.tensors import is_inside, module_of
from fxprune.passes.shrinking.regroup_heads import head_dims
from fxprune.result.selection import Selection
from fxprune.rules.axes import Atom, Axis, Product, Sum, atoms_of
from fxprune.rules.registry import Axes

__all__ = ["Sizes", "sizes_by_module"]

MERGED = (2, 3, 4, 6, 8)  # heads that may have become one


@dataclass(frozen=True)
class Sizes:
    """What sizes of axes became: old -> the new ones that some axis of that size has.

    whole: of whole dimensions alone, each with how deep below the module the nearest such axis lies.
    weights: the same of whole dimensions of weights alone.
    parts: of their factors, and of runs of factors, as well, and of what the module is given.
    near: as `parts`, of its own values and weights alone, and of those of modules right below it.
    given: sizes of the model's inputs: a number that is one of them is no width for sure.
    gives: of whole dimensions of what the module gives to code around it.
    counts: of numbers in its own code that count what a statistic runs over, or are roots of such.
    """

    whole: Mapping[int, Mapping[int, int]]
    weights: Mapping[int, Mapping[int, int]]
    parts: Mapping[int, set[int]]
    near: Mapping[int, set[int]] = field(default_factory=dict)
    given: frozenset[int] = frozenset()
    gives: Mapping[int, set[int]] = field(default_factory=dict)
    counts: Mapping[float, float] = field(default_factory=dict)

    def may_be(self, old: int) -> list[int]:
        """List every size that something of this size may have become; empty if all of it stayed."""
        found = {*self.parts.get(old, ()), *self.whole.get(old, ())}
        return sorted(found) if found - {old} else []

    def nearby(self, old: int) -> int | None:
        """Return the new size, if it is another and all axes right here whose size, or part, it was agree."""
        found = self.near.get(old, set()) - {old}
        return next(iter(found)) if len(found) == 1 else None

    def agree(self, old: int) -> bool:
        """Have all whole dimensions of weights of a size become one size?"""
        return len(self.weights.get(old, {})) < 2

    def surely(self, old: int, *, is_width: bool = False) -> int | None:
        """Return the new size, if it is another and the nearest whole dimensions of the old one agree.

        is_width: it is known to be a size of weights, and none of an input or a number of tokens.
        """
        if old in self.given and not is_width:
            return None
        depths = (self.weights if is_width else self.whole).get(old, {})
        nearest = [new for new, depth in depths.items() if depth == min(depths.values())]
        return nearest[0] if len(nearest) == 1 and nearest[0] != old else None


def sizes_by_module(model: nn.Module, analysis: Analysis, selection: Selection) -> dict[str, Sizes]:
    """Find the sizes of the axes that each module's weights and values carry."""
    weights = [(name.rpartition(".")[0], own) for name, own in analysis.weights.items()]
    values = [(module_of(n), own) for n, all_of in analysis.axes.items() for own in all_of]
    inputs = [own for n, all_of in analysis.axes.items() if n.op == "placeholder" for own in all_of]
    given = frozenset(axis.size for own in inputs for axis in own)
    taken = [
        (module_of(n), own)
        for n in analysis.axes
        for i in n.all_input_nodes
        for own in analysis.axes.get(i, ())
    ]
    of_weights, of_all = _depths(weights), _depths([*weights, *values])
    with_given = _depths([*weights, *values, *taken])
    before, gives = _before_merge(analysis), _gives(analysis, selection)
    counts = _counts(analysis, selection)
    return {
        path: Sizes(
            whole=_whole(of_all[path], selection),
            weights=_whole(of_weights[path], selection),
            parts=_parts(with_given[path], selection, before),
            near=_near([axis for axis, depth in of_all[path].items() if depth <= 1], selection),
            given=given,
            gives=gives.get(path, {}),
            counts=counts.get(path, {}),
        )
        for path, _ in model.named_modules()
    }


def _depths(placed: Iterable[tuple[str, Axes]]) -> Mapping[str, Mapping[Axis, int]]:
    """Map each module to the axes in it, and how deep the nearest of each lies."""
    depths: dict[str, dict[Axis, int]] = defaultdict(dict)
    for where, axes in placed:
        for depth, path in enumerate(_above(where)):
            known = depths[path]
            for axis in axes:
                known[axis] = min(depth, known.get(axis, depth))
    return depths


def _gives(analysis: Analysis, selection: Selection) -> Mapping[str, Mapping[int, set[int]]]:
    """Map each module to the sizes of what code around it takes of it, old and new."""
    found: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for node, values in analysis.axes.items():
        users = {module_of(user) for user in node.users}
        for path in _above(module_of(node)):
            if path and not all(is_inside(user, [path]) for user in users):
                for axis in (axis for axes in values for axis in axes):
                    found[path][axis.size].add(selection.size(axis))
    return found


def _counts(analysis: Analysis, selection: Selection) -> Mapping[str, Mapping[float, float]]:
    """Map each module to the written numbers in its own code that follow what is kept, old and new."""
    found: dict[str, dict[float, float]] = defaultdict(dict)
    for node, counts in analysis.graph.counts.items():
        for count in counts:
            new = count.written((node, count.place), selection.size)
            if type(count.number) is float and new not in (None, count.number):
                found[module_of(node)][count.number] = new
    return found


def _whole(axes: Mapping[Axis, int], selection: Selection) -> Mapping[int, Mapping[int, int]]:
    whole: dict[int, dict[int, int]] = defaultdict(dict)
    for axis, depth in axes.items():
        known, new = whole[axis.size], selection.size(axis)
        known[new] = min(depth, known.get(new, depth))
    return dict(whole)


def _parts(
    axes: Iterable[Axis], selection: Selection, before: Mapping[Atom, Sequence[int]] = MappingProxyType({})
) -> Mapping[int, set[int]]:
    parts: dict[int, set[int]] = defaultdict(set)
    for axis in axes:
        for part in _runs(axis):
            for size in (part.size, *(before.get(part, ()) if isinstance(part, Atom) else ())):
                parts[size].add(selection.size(part))
    return dict(parts)


def _before_merge(analysis: Analysis) -> Mapping[Atom, Sequence[int]]:
    """Map the axes of merged heads, and of what lies in them, to the sizes that they may have had before."""
    found: dict[Atom, Sequence[int]] = {}
    for group in analysis.groups:
        if group.name in analysis.regrouped:
            found[group.atom] = [group.size * times for times in MERGED]
            for inside in head_dims(analysis, group):
                found[inside] = [inside.size // times for times in MERGED if inside.size % times == 0]
    return found


def _near(axes: Sequence[Axis], selection: Selection) -> Mapping[int, set[int]]:
    """Map sizes to the new ones: of single factors, where one has that size, else of runs of them."""
    single: dict[int, set[int]] = defaultdict(set)
    for axis in axes:
        for atom in atoms_of(axis):
            single[atom.size].add(selection.size(atom))
    return {**_parts(axes, selection), **single}


def _runs(axis: Axis) -> Iterator[Axis]:
    """List the axis, its factors or parts, and all neighbours among them taken together."""
    if isinstance(axis, Atom):
        yield axis
        return
    for i in range(len(axis.parts)):
        for j in range(i + 1, len(axis.parts) + 1):
            run = axis.parts[i:j]
            yield Product.of(run) if isinstance(axis, Product) else Sum.of(run)
    for part in axis.parts:
        if not isinstance(part, Atom):
            yield from _runs(part)


def _above(path: str) -> Iterator[str]:
    """List a module's path and those of all around it, the nearest first, the root's last."""
    parts = path.split(".") if path else []
    yield from (".".join(parts[:i]) for i in range(len(parts), -1, -1))
