"""Count what each group carries, before and after, each weight and call once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from fxprune.analysis.analysis import Analysis, Group
from fxprune.result.plan import Kept, Plan
from fxprune.result.pruned_module import plan_of
from fxprune.rules.axes import atoms_of

__all__ = ["GroupFigures", "figures_of", "folded", "heads_of", "norms_as_before"]


@dataclass(frozen=True)
class GroupFigures:
    """One group, before and after.

    width: its elements.  parameters, macs: of the weights and calls that carry it.  One that carries several
    groups counts with the one of fewest sites (the head_dim of an attention before the residual width), so
    that groups add up.
    """

    name: str
    role: str
    width: tuple[int, int]
    parameters: tuple[int, int]
    macs: tuple[float, float]


def norms_as_before(model: nn.Module, pruned: nn.Module) -> int:
    """Count batch norms that hold slices of the original's statistics still, if anything shrank."""
    plan = plan_of(pruned)
    dense, old_of = dict(model.named_buffers()), {new: old for old, new in plan.renamed.items()}
    found = 0
    for name, variance in pruned.named_buffers() if plan.groups else ():
        before = dense.get(old := old_of.get(name, name))
        if not name.endswith("running_var") or before is None or before.is_meta:
            continue
        kept = next(iter(plan.kept.get(old, ())), None)
        before = before if kept is None else before[kept.to(before.device)]
        found += bool(before.shape == variance.shape and (before.to(variance) == variance).all())
    return found


def figures_of(
    analysis: Analysis,
    groups: Sequence[Group],
    plan: Plan,
    pruned: nn.Module,
    macs: tuple[dict[str, float], dict[str, float]],
) -> list[GroupFigures]:
    """Return the figures of each group; each weight and each call counts once."""
    dense = dict(analysis.module.named_parameters(remove_duplicate=False))
    left = dict(pruned.named_parameters(remove_duplicate=False))
    weights: dict[Group, list[str]] = {group: [] for group in groups}
    calls: dict[Group, list[str]] = {group: [] for group in groups}
    narrow_first = sorted(groups, key=lambda g: len(g.sites))
    counted: set[int] = set()
    for group in narrow_first:
        for name in dict.fromkeys(analysis.names.get(site.name, site.name) for site in group.sites):
            if name in dense and plan.renamed.get(name, name) in left and id(dense[name]) not in counted:
                counted.add(id(dense[name]))
                weights[group].append(name)
    for node in analysis.axes:
        if macs[0].get(node.name):
            owner = next((g for g in narrow_first if _uses(analysis, node, g)), None)
            if owner is not None:
                calls[owner].append(node.name)
    return [
        GroupFigures(
            group.name,
            group.role,
            (group.size, plan.groups[group.name].count),
            (
                sum(dense[n].numel() for n in weights[group]),
                sum(left[plan.renamed.get(n, n)].numel() for n in weights[group]),
            ),
            (sum(macs[0][n] for n in calls[group]), sum(macs[1].get(n, 0) for n in calls[group])),
        )
        for group in groups
    ]


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def folded(groups: Sequence[GroupFigures]) -> list[tuple[str, GroupFigures]]:
    """Merge equal groups of equal blocks, with their sums: `blocks.0-11.attn.head_dim (x12)`."""
    alike: dict[Any, list[GroupFigures]] = {}
    for g in groups:
        alike.setdefault((_NUMBER.sub("*", g.name), g.width, g.parameters, g.macs), []).append(g)
    out = []
    for members in alike.values():
        first, count = members[0], len(members)
        columns = zip(*(_NUMBER.findall(g.name) for g in members), strict=True)
        numbers = [_range(sorted({*map(int, column)})) for column in columns]
        between = _NUMBER.split(first.name)
        name = "".join(itertools.chain(*zip(between, [*numbers, ""], strict=True)))
        name += f" (x{count})" * (count > 1)
        together = replace(
            first,
            parameters=(first.parameters[0] * count, first.parameters[1] * count),
            macs=(first.macs[0] * count, first.macs[1] * count),
        )
        out.append((name, together))
    return out


def _range(numbers: Sequence[int]) -> str:
    """Write [0, 1, 2] as `0-2`, [0, 2] as `0,2`."""
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(map(str, numbers))


def _uses(analysis: Analysis, node: fx.Node, group: Group) -> bool:
    """Does a call take the group's axis in, as a value or by a weight?"""
    graph = analysis.graph
    return any(group.atom in graph.carried(arg) for arg in node.all_input_nodes) or any(
        group.atom in atoms_of(graph.at(site)) for site in graph.operands.get(node, ())
    )


def heads_of(analysis: Analysis, kept: dict[str, Kept]) -> int:
    """Count the attention heads of all layers: what stands outside a head dim."""
    found = [group for group in analysis.groups if group.role == "heads"]
    return sum(kept[g.name].count if g.name in kept else g.size for g in found)
