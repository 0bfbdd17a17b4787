"""The layers that read a group by weights of their own: what is lost of it they can make up for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, fx

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.importance.along import along
from fxprune.choose.importance.answers import channels_of
from fxprune.choose.importance.soft_masks import SoftMasked, Use
from fxprune.graph.tensors import named_tensors
from fxprune.rules.axes import Atom, Axis, Product, atoms_of

__all__ = ["Layers", "Readers", "layer_names", "layers_by_group", "rows_read"]

Readers = list[tuple[fx.Node, Tensor]]  # nodes and what their weights make of a group
Layers = dict[Group, Readers]


def layers_by_group(analysis: Analysis, groups: Sequence[Group]) -> Layers:
    """Find the layers of each group, with weights [.., outputs, n]; groups read otherwise are left out."""
    model = SoftMasked(analysis, groups)
    found: Layers = {group: [] for group in groups}
    tensors, solved = dict(named_tensors(analysis.module)), channels_of(analysis)
    for node, uses in (*model.uses.items(), *model.statistics.items()):
        for use in uses:
            weight = rows_read(analysis, tensors, node, use) if node.name in solved else None
            if weight is None:
                found.pop(use.group, None)
            elif use.group in found:
                found[use.group].append((node, weight))
    return {group: layers for group, layers in found.items() if layers}


def layer_names(layers: Layers) -> set[str]:
    """Return the names of all layers that read some groups."""
    return {node.name for uses in layers.values() for node, _ in uses}


def rows_read(analysis: Analysis, tensors: Mapping[str, Tensor], node: fx.Node, use: Use) -> Tensor | None:
    """Return what a layer's own weight makes of a group, [.., outputs, n]; None where it has no such weight.

    Leading dims are a head each, where heads choose for themselves.  Outputs are those of each place of a
    kernel in turn.  tensors: of the analysed graph, by name.
    """
    group = use.group
    head = group.inside.atom if group.inside is not None else None
    allowed = {group.atom} if head is None else {group.atom, head}
    if not all(_is_plain(axis, allowed) for axis in use.axes):
        return None
    names = {
        s.name for s in analysis.graph.operands.get(node, ()) if group.atom in atoms_of(analysis.axis(s))
    }
    if len(names) != 1:
        return None
    (name,) = names
    axes, weight = analysis.weights[name], tensors[name].detach()
    carrying = [axis for axis in axes if group.atom in atoms_of(axis)]
    if len(carrying) != 1 or not all(_is_plain(axis, allowed) for axis in axes):
        return None
    if head is not None and head not in atoms_of(carrying[0]):
        return None
    return along(weight, axes, group.atom, head, 1)


def _is_plain(axis: Axis, allowed: set[Atom]) -> bool:
    """Is a group's atom alone along an axis, or with its heads, or not there at all?"""
    atoms = {*atoms_of(axis)}
    if atoms.isdisjoint(allowed):
        return True
    return atoms <= allowed and isinstance(axis, Atom | Product)
