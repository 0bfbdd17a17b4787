"""Groups that keep the same share: those that code cuts a width into equal parts for.

`qkv.chunk(3)` gives queries, keys and values one width, as `qkv.reshape(.., 3, heads, -1).unbind()` does: a
ranking chooses which elements of each go, and leaves no parts of several widths, which code can't cut so.
The same holds for sizes that code has one number for, where it lists them for several layers: one head_dim of
queries, keys and values.  `split_qkv=True` asks for widths of their own.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import networkx as nx
from torch import fx

from fxprune.analysis.analysis import Analysis, Group
from fxprune.analysis.infer import Step
from fxprune.graph.size_reads import dim_read
from fxprune.graph.tensors import module_of
from fxprune.rules.axes import Atom, Axis, Sum, atoms_of, size_of

__all__ = ["Tied", "Ties", "held_by_ties", "ties_of"]

Tied = Mapping[Group, int]  # how many of its elements stay for each one of the smallest
Ties = Mapping[Group, Tied]  # the smallest of those that are tied -> all of them


def ties_of(analysis: Analysis, groups: Sequence[Group], *, own_code: bool = False) -> Ties:
    """Sort groups by what is tied to each; one that nothing is tied to stands alone.

    own_code: heads times head_dim is also as wide as the stream, where code has the stream's width alone.
    """
    tied, _ = _tied(analysis, groups, own_code=own_code)
    order = {group: (group.size, i) for i, group in enumerate(groups)}
    sets = [sorted(found, key=order.__getitem__) for found in nx.connected_components(tied)]
    found = {}
    for together in sorted(sets, key=lambda found: groups.index(found[0])):
        least = together[0].size
        even = all(group.size % least == 0 for group in together)
        for some in [together] if even else [[group] for group in together]:
            found[some[0]] = {group: group.size // some[0].size for group in some}
    return found


def held_by_ties(analysis: Analysis, groups: Sequence[Group]) -> set[Group]:
    """Find the groups that are tied to what can't shrink: queries cut beside values as wide as the input."""
    tied, held = _tied(analysis, groups, own_code=True)
    return {group for found in nx.connected_components(tied) if found & held for group in found}


def _tied(
    analysis: Analysis, groups: Sequence[Group], *, own_code: bool
) -> tuple[nx.Graph[Group], set[Group]]:
    """Find what is tied to each other, and the groups that a cut ties to an axis that can't shrink."""
    tied: nx.Graph[Group] = nx.Graph()
    tied.add_nodes_from(groups)
    held: set[Group] = set()
    if not analysis.captured.split_qkv:
        by_atom = {group.atom: group for group in groups}
        equal = [pieces for step in analysis.steps.values() for pieces in _equal_pieces(step)]
        more = _of_torchs_attention(analysis) if own_code else ()
        for pieces in (*equal, *_listed_alike(analysis), *_read_elsewhere(analysis, own_code), *more):
            nx.add_path(tied, _apart(pieces, by_atom))
        may_shrink = {group.atom for group in analysis.prunable}
        for pieces in equal:
            factors = [{*atoms_of(piece)} for piece in pieces]
            shared = set.intersection(*factors)
            own = [atoms - shared for atoms in factors]
            if any(atoms and not atoms & may_shrink for atoms in own):
                held |= {by_atom[atom] for atoms in own for atom in atoms if atom in by_atom}
    return tied, held


def _equal_pieces(step: Step) -> Iterator[list[Axis]]:
    """Find the axes into which a call cuts one by a single number, if all are of one size."""
    for argument, spelled in step.flow.sizes.items():
        pieces = [*spelled] if isinstance(spelled, (list, tuple)) else []
        is_one = not isinstance(step.bound.get(argument), (list, tuple))
        if is_one and all(isinstance(axis, Axis) for axis in pieces) and len({a.size for a in pieces}) == 1:
            yield pieces


def _listed_alike(analysis: Analysis) -> Iterable[list[Axis]]:
    """Find the axes that a module's code has one number for, in several calls.

    One line that cuts for several layers (`x.split([d, d, v])`, in a loop over heads); or views that have a
    number in one place (`q.view(b, n, -1, d)`, then `k` and `v`).
    """
    found: dict[tuple[object, ...], list[Axis]] = defaultdict(list)
    is_symbolic = analysis.captured.way == "symbolic"
    for node, step in analysis.steps.items():
        for argument, spelled in step.flow.sizes.items():
            where = node.meta.get("where")
            if not isinstance(spelled, (list, tuple)) or not where:
                continue
            given = _listed(step.bound.get(argument), len(spelled))
            if argument != "split_size" and -1 not in given and not is_symbolic:
                continue  # an exported graph has as numbers what code takes from the tensor itself
            line = where if argument == "split_size" else argument
            for place, (axis, size) in enumerate(zip(spelled, given, strict=True)):
                if isinstance(axis, Axis) and isinstance(size, int) and size > 1:
                    found[module_of(node), line, len(given), place, size].append(axis)
    return found.values()


def _listed(given: object, length: int) -> Sequence[object]:
    """List as many sizes as an argument has; of `x.shape[:-1] + (heads, d)` the last ones."""
    if isinstance(given, fx.Node) and given.target is operator.add:
        given = given.args[1]
    items = [*given] if isinstance(given, (list, tuple)) else []
    return [*[None] * (length - len(items)), *items]


def _read_elsewhere(analysis: Analysis, own_code: bool) -> Iterator[list[Axis]]:
    """Find the axes whose size code takes from another tensor: `x.view(b, -1, y.shape[-1])`.

    Of whole widths.  Heads times head_dim, where the code reads the stream's (`x.reshape(b, n, c)`), would
    leave layers no width of their own: tied only where that very code is to hold them.
    """
    for step in analysis.steps.values():
        for argument, spelled in step.flow.sizes.items():
            given = step.bound.get(argument)
            if isinstance(given, (list, tuple)) and isinstance(spelled, (list, tuple)):
                for axis, size in zip(spelled, given, strict=False):
                    read = _axis_read(analysis, size)
                    is_width = isinstance(axis, Axis if own_code else Atom)
                    if is_width and isinstance(read, Atom) and read is not axis:
                        yield [axis, read]


def _of_torchs_attention(analysis: Analysis) -> Iterator[list[Axis]]:
    """Find the width of what torch.nn's attention is given, with that of its queries, and of its values."""
    weights = {name: analysis.weights[there] for name, there in analysis.names.items()}
    for name, axes in weights.items():
        owner, _, leaf = name.rpartition("in_proj_weight")
        if not leaf and f"{owner}out_proj.weight" in weights and isinstance(axes[0], Sum):
            for inner in (axes[0].parts[0], axes[0].parts[-1]):
                yield [inner, axes[1]]


def _axis_read(analysis: Analysis, size: object) -> Axis | None:
    """Return the axis whose size a node reads."""
    read = dim_read(size) if isinstance(size, fx.Node) else None
    axes = analysis.axes.get(read[0]) if read is not None else None
    return axes[0][read[1]] if read is not None and axes else None


def _apart(pieces: Sequence[Axis], by_atom: Mapping[Atom, Group]) -> list[Group]:
    """List the group of each piece that the others do not share: none, where that is not one for each.

    Head counts are shared; head dims are not.
    """
    factors = [{*atoms_of(piece)} for piece in pieces]
    shared = set.intersection(*factors)
    own = [[by_atom[a] for a in atoms - shared if a in by_atom] for atoms in factors]
    if any(len(found) != 1 for found in own):
        return []
    groups = [found[0] for found in own]
    return groups if all(map(_is_multiple, pieces, groups)) else []


def _is_multiple(piece: Axis, group: Group) -> bool:
    """Is a piece as many times as large as a group, whatever that keeps?"""
    times, rest = divmod(piece.size, group.size)
    return rest == 0 and size_of(piece, {group.atom: group.size - 1}) == times * (group.size - 1)
