"""Fewer, wider heads on the same weights: 12 heads of 64 become 3 heads of 256.

UP-ViTs (https://arxiv.org/abs/2111.15127) prunes attention so: consecutive heads are merged, then the
channels of each merged head are pruned.  The scores of merged heads are added before the softmax, so this
is another function than the model's; it is what the model's own code computes when it is told of fewer
heads, with its scale left as it was.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from fxprune.analysis.analysis import Analysis, Group
from fxprune.errors import RewriteError
from fxprune.graph.values import NodeError, propagate_values
from fxprune.passes.shrinking.steps.draft import KEPT, Draft, copied
from fxprune.passes.shrinking.steps.pin_sizes import pin_sizes
from fxprune.passes.shrinking.steps.respell import respell
from fxprune.result.selection import Selection
from fxprune.rules.axes import Atom, Axis, Sum, atoms_of

__all__ = ["head_dims", "regroup_heads"]


def regroup_heads(analysis: Analysis, *, counts: Mapping[Group, int]) -> fx.GraphModule:
    """Give groups of heads fewer, wider heads.

    Needs: `counts` that divide the numbers of heads, of groups for which `head_dims` is not empty.
    Guarantees: a new graph on the same tensors, with `meta["val"]`; the analysed one is not changed.

    Raises:
        RewriteError: the graph does not run with other heads.
    """
    sizes: dict[Atom, int] = {}
    for heads, count in counts.items():
        sizes[heads.atom] = count
        sizes |= {d: d.size * heads.size // count for d in head_dims(analysis, heads)}
    resized = _Resized(sizes)
    graph, new_of = copied(analysis.module.graph, (*KEPT, "default_scale"))
    module = fx.GraphModule(analysis.module, graph, type(analysis.module).__name__)
    draft = Draft(analysis, resized, graph, new_of, module)
    pin_sizes(draft)
    respell(draft)
    captured = analysis.captured
    try:
        propagate_values(module, captured.example, captured.stand_in_batch)
    except NodeError as error:
        raise RewriteError(f"the graph does not run with merged heads at {error}") from error
    module.recompile()
    return module


def head_dims(analysis: Analysis, heads: Group) -> list[Atom]:
    """Return the head dims that stand right inside the heads in every weight that carries either.

    Empty if either stands alone somewhere (a bias per head, a norm per head_dim): such weights can't be
    regrouped.
    """
    resolved = [axis for axes in analysis.weights.values() for axis in axes]
    live = {group.atom for group in analysis.prunable}
    inside = {b for axis in resolved for a, b in _neighbours(axis) if a is heads.atom and b in live}
    for axis in resolved:
        together = [(a, b) for a, b in _neighbours(axis) if a is heads.atom and b in inside]
        atoms = [a for a in atoms_of(axis) if a is heads.atom or a in inside]
        if len(atoms) != 2 * len(together):
            return []
    spelled = {n for n, step in analysis.steps.items() if n.op == "call_module" and step.flow.sizes}
    touched = {a for n in spelled for axes in analysis.axes[n] for axis in axes for a in atoms_of(axis)}
    return [] if touched & {heads.atom, *inside} else sorted(inside, key=lambda a: a.serial)


def _neighbours(axis: Axis) -> list[tuple[Atom, Atom | None]]:
    """Return each atom of an axis with the atom right inside it."""
    if isinstance(axis, Atom):
        return [(axis, None)]
    found = [pair for part in axis.parts if not isinstance(part, Atom) for pair in _neighbours(part)]
    if isinstance(axis, Sum):
        return found + [(part, None) for part in axis.parts if isinstance(part, Atom)]
    for part, after in zip(axis.parts, (*axis.parts[1:], None), strict=False):
        if isinstance(part, Atom):
            found.append((part, after if isinstance(after, Atom) else None))
    return found


class _Resized(Selection):
    """Sizes of axes with some atoms of another size: what `shrink` asks of a selection."""

    def __init__(self, sizes: dict[Atom, int]) -> None:
        super().__init__({}, {})
        self.sizes = sizes

    def shrinks(self, axis: Axis) -> bool:
        return any(a in self.sizes for a in atoms_of(axis))

    def size(self, axis: Axis) -> int:
        return self.sizes.get(axis, axis.size) if isinstance(axis, Atom) else super().size(axis)
