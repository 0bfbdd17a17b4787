"""Solve a smaller sibling's shapes for the sizes of the model's groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.groups import Group
from fxprune.choose.like.names import tensor_names
from fxprune.errors import SiblingError
from fxprune.graph.tensors import named_tensors
from fxprune.rules.axes import Atom, Axis, Sum, atoms_of

__all__ = ["target_sizes"]


def target_sizes(
    model: Analysis, sibling: Analysis, pairs: Sequence[tuple[fx.Node, fx.Node]]
) -> dict[Group, int]:
    """Find the size that the smaller model has in the place of each group that may shrink.

    Every dimension of every weight and value of the sibling is an equation about the model's axes:
    `Product(3, heads, head_dim) = 576`.  Values where heads stand alone tell them from head dims.

    Raises:
        SiblingError: a frozen dimension differs, or is larger, or tells no factors apart.
    """
    equations = list(_equations(model, sibling, pairs))
    known = _solved(equations, model)
    for group in model.prunable:
        if known.get(group.atom, 0) > group.size:
            raise _refused(group, known[group.atom], "nothing grows")
    unknown = [g for g in model.prunable if g.atom not in known]
    if unknown:
        raise SiblingError(
            f"like=: the smaller model's shapes don't say how many elements of {unknown[0].name} to keep "
            f"(of {unknown[0].size}): they show it only together with other groups"
        )
    return {group: known[group.atom] for group in model.prunable}


Equation = tuple[str, Axis, int]  # a place in words, the model's axis, the sibling's size


def _equations(
    model: Analysis, sibling: Analysis, pairs: Sequence[tuple[fx.Node, fx.Node]]
) -> Iterator[Equation]:
    weights = dict(named_tensors(sibling.module))
    for ours, theirs in tensor_names(model.module, pairs):
        axes, shape = model.weights.get(ours, ()), weights[theirs].shape
        if axes and len(axes) != len(shape):
            raise SiblingError(f"like=: {ours} has {len(axes)} dimensions, {theirs} {len(shape)}")
        for dim, axis in enumerate(axes):
            yield f"{ours}[{dim}]", axis, shape[dim]
    for ours_node, theirs_node in pairs:
        values = [t for t in pytree.tree_leaves(theirs_node.meta.get("val")) if isinstance(t, Tensor)]
        for axes, value in zip(model.axes.get(ours_node, []), values, strict=False):
            for dim, (axis, size) in enumerate(zip(axes, value.shape, strict=False)):
                yield f"the values of {ours_node.name}, dimension {dim}", axis, size


def _solved(equations: list[Equation], model: Analysis) -> dict[Atom, int]:
    """Substitute until nothing new is learned."""
    known: dict[Atom, int] = {}
    for _, axis, _ in equations:  # what is frozen first: its errors are the clearest
        for a in atoms_of(axis):
            if model.frozen(a) is not None:
                known[a] = a.size
    while equations:
        waiting = [e for e in equations if not _substitute(e, known, model)]
        if len(waiting) == len(equations) and not _unshrunk(waiting, known):
            break
        equations = waiting
    return known


def _unshrunk(equations: list[Equation], known: dict[Atom, int]) -> bool:
    """Learn from one composed axis that is as large in the smaller model: none of its factors shrinks.

    Nothing grows, so no other factors have that product: groups of a norm, say, that no value shows alone.
    """
    for _, axis, size in equations:
        unknown = [a for a in atoms_of(axis) if a not in known]
        if unknown and axis.size == size:
            known.update((a, a.size) for a in unknown)
            return True
    return False


def _substitute(equation: Equation, known: dict[Atom, int], model: Analysis) -> bool:
    """Learn from one equation; False if it has too many unknowns as yet."""
    place, axis, size = equation
    if isinstance(axis, Atom):
        if known.setdefault(axis, size) != size:
            raise _contradiction(place, axis, known[axis], size, model)
        return True
    values = [_value(part, known) for part in axis.parts]
    open_parts = [p for p, v in zip(axis.parts, values, strict=True) if v is None]
    certain = [v for v in values if v is not None]
    if len(set(open_parts)) > 1 or (not isinstance(axis, Sum) and len(open_parts) > 1):
        return False
    if isinstance(axis, Sum):
        rest, times = size - sum(certain), max(1, len(open_parts))
    else:
        times = math.prod(certain)
        rest = size if open_parts else size - times
    if (open_parts and (rest <= 0 or rest % times)) or (not open_parts and rest):
        raise _contradiction(place, axis, axis.size, size, model)
    return not open_parts or _substitute((place, open_parts[0], rest // times), known, model)


def _value(axis: Axis, known: dict[Atom, int]) -> int | None:
    if isinstance(axis, Atom):
        return known.get(axis)
    values = [v for part in axis.parts if (v := _value(part, known)) is not None]
    if len(values) < len(axis.parts):
        return None
    return sum(values) if isinstance(axis, Sum) else math.prod(values)


def _contradiction(place: str, axis: Axis, ours: int, size: int, model: Analysis) -> SiblingError:
    groups = [model.by_atom[a] for a in atoms_of(axis) if a in model.by_atom]
    frozen = [g for g in groups if g.frozen is not None]
    if isinstance(axis, Atom) and frozen:
        return _refused(frozen[0], size, f"it is frozen: {frozen[0].frozen}", place)
    reason = model.frozen(axis) if isinstance(axis, Atom) else None
    if reason is not None:
        return SiblingError(
            f"like=: {place} has {axis.size} elements here and {size} in the smaller model; it must stay "
            f"frozen: {reason}"
        )
    names = ", ".join(dict.fromkeys(g.name for g in groups)) or "it"
    return SiblingError(
        f"like=: {place} would have {ours} elements by what else the smaller model shows, and has {size} "
        f"there ({names})"
    )


def _refused(group: Group, size: int, why: str, place: str = "") -> SiblingError:
    at = place or str(group.sites[0])
    return SiblingError(
        f"like=: {group.name} ({at}) has {group.size} elements here and {size} in the smaller model; {why}"
    )
