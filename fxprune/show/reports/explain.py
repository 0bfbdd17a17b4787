"""`fxprune.explain`: one module's, weight's or group's part in the whole, in words."""

from __future__ import annotations

import difflib
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
from torch import fx, nn

from fxprune.analysis.analysis import Analysis, Group, Site
from fxprune.analysis.analyze import analyze
from fxprune.analysis.freedom.regions import Place
from fxprune.analysis.paths import paths_of
from fxprune.analysis.words import Words
from fxprune.errors import OptionError, listed
from fxprune.graph.tensors import modules_around
from fxprune.rules.axes import atoms_of

__all__ = ["Explanation", "explain"]

MOST_WEIGHTS = 16
MOST = 4  # of couplings to show, and of nodes on either end of a path


@dataclass(frozen=True)
class Explanation:
    """The text, as `str()`; `weights` and `groups` are what it speaks of.

    weights: name in the state -> one word per dimension, e.g. `("(3 heads head_dim)", "embed")`.
    groups: all that these dimensions are made of.
    """

    text: str
    weights: dict[str, tuple[str, ...]]
    groups: list[Group]

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def explain(model: nn.Module | Analysis, name: str, **options: Any) -> Explanation:
    """Explain what may shrink in a module, what it is coupled with, and what is frozen and why.

    Args:
        model: a model, or what `analyze` returned for it.
        name: of a module (`blocks.3.attn.qkv`), a weight (`blocks.3.attn.qkv.weight`), one dimension of it
            (`blocks.3.attn.qkv.weight[0]`) or a group (`blocks.3.attn.heads`).
        options: those of `analyze`, for a model; an `Analysis` was made with its own.

    Raises:
        OptionError: nothing has that name (says which names are close), or options beside an `Analysis`.

    Example:
        >>> print(fxprune.explain(model, "blocks.3.attn.qkv"))
        blocks.3.attn.qkv.weight [576, 192]: (3 heads head_dim) embed
        ...
    """
    if isinstance(model, Analysis) and options:
        raise OptionError(f"{listed(options)}: for a model that is to be analysed; this Analysis has its own")
    analysis = model if isinstance(model, Analysis) else analyze(model, **options)
    sites = _sites(analysis, name)
    weights = dict.fromkeys(site.name for site in sites)
    words = {
        w: tuple(Words(analysis).axis(axis) for axis in analysis.weights[analysis.names.get(w, w)])
        for w in weights
    }
    axes = [analysis.axis(site) for site in sites]
    groups = list(dict.fromkeys(analysis.by_atom[a] for axis in axes for a in atoms_of(axis)))
    by_name = {group.name: group for group in groups}
    if name in by_name and not any(w == name or w.startswith(f"{name}.") for w in weights):
        groups = [by_name[name]]
    lines = [f"{w} {_shape(analysis, w)}: {' '.join(words[w])}" for w in list(words)[:MOST_WEIGHTS]]
    lines += [f"... and {len(words) - len(lines)} more weights"] if len(words) > len(lines) else []
    paragraphs = dict.fromkeys("\n".join(_about(analysis, group, sites)) for group in groups)
    return Explanation("\n\n".join(["\n".join(lines), *paragraphs]), words, groups)


def _shape(analysis: Analysis, weight: str) -> str:
    return str([axis.size for axis in analysis.weights[analysis.names.get(weight, weight)]])


def _sites(analysis: Analysis, name: str) -> list[Site]:
    """Return the dimensions that a name stands for."""
    every = list(dict.fromkeys(site for group in analysis.groups for site in group.sites))
    groups = {group.name: group for group in analysis.groups}
    inside = [s for s in every if name in (str(s), s.name) or s.name.startswith(f"{name}.")]
    if inside:
        return sorted(inside)
    if name in groups:
        return sorted(groups[name].sites)
    paths = {p for s in every for p in (*modules_around(s.name), s.name)}
    known = sorted({*groups, *paths, *map(str, every)})
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known[:3]
    if name in dict(analysis.module.named_modules()):
        raise OptionError(f"{name!r} is a module without weights of more than one element to explain")
    raise OptionError(
        f"{name!r} is no module, weight or group of this model; close are {', '.join(map(repr, near))}"
    )


def _about(analysis: Analysis, group: Group, here: list[Site]) -> list[str]:
    """Return a paragraph on one group, as seen from some of its sites."""
    word = Words(analysis).axis(group.atom)
    if group.frozen is not None:
        where = os.path.basename(group.frozen.where or "")
        return [f"{word} is frozen: {replace(group.frozen, where=where)}"]
    heads = f"; each of {group.inside.name} keeps a choice of its own" if group.inside else ""
    lines = [f"{word} may shrink: {group.size} elements, group {group.name}{heads}"]
    start = next(site for site in group.sites if site in here)
    others = [s for s in group.sites if s not in here] or [s for s in group.sites if s != start]
    if not others:
        return [*lines, "  coupled with no other weight", *_bases(group)]
    lines.append(f"  coupled with {len(others)} other dimension{'s' if len(others) > 1 else ''} of weights")
    for first, *nodes, last in _nearest(analysis, group, start, others):
        lines.append(f"  {first} with {last}: {_route(nodes)}")
    lines.append(f"  all: {listed([str(site) for site in others], 2 * MOST)}")
    return [*lines, *_bases(group)]


def _bases(group: Group) -> list[str]:
    """Spell which changes of basis a group allows, what limits them, and what changes by which matrix."""
    lines = [f"  change of basis: {group.freedom}{f', by {group.why}' if group.why else ''}"]
    for name, region in group.bases.items():
        ones = ", keeping the vector of ones" if region.centred else ""
        rows, columns = (_places([p for p in region.places if p.side == side]) for side in (1, -1))
        lines.append(f"    {name} ({region.freedom}{ones}): {listed(rows, MOST)}")
        lines += [f"      by the inverse of its transpose: {listed(columns, MOST)}"] if columns else []
        folded = [fold.vector.name for fold in region.folds]
        lines += [f"      folded first: {listed(folded, MOST)}"] if folded else []
    return lines


def _places(places: Sequence[Place]) -> list[str]:
    """Write dimensions of weights, and which parts of them if not all: `attn.qkv.weight[0] part 2`."""
    parts: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        parts[f"{place.name}[{place.dim}]"].append(place)
    found = []
    for name, mine in parts.items():
        every = len({p.part for p in mine}) == math.prod(a.size for a, _ in mine[0].part)
        which = ", ".join(str(i) for p in mine for _, i in p.part)
        found.append(name if every else f"{name} part {which}")
    return found


def _nearest(analysis: Analysis, group: Group, start: Site, others: list[Site]) -> list[list[Any]]:
    """Return the shortest paths to the nearest modules: a site, the nodes between, a site."""
    passes = paths_of(analysis.graph, group.atom)
    if str(start) not in passes:
        return []
    paths = nx.single_source_shortest_path(passes, str(start))
    one_per_module = {site.name.rpartition(".")[0]: str(site) for site in reversed(others)}
    return sorted((paths[site] for site in one_per_module.values() if site in paths), key=len)[:MOST]


def _route(nodes: list[fx.Node]) -> str:
    """Return nodes with their source lines, the middle of a long path left out."""
    steps = []
    for node in nodes:
        where = os.path.basename(node.meta.get("where") or "")
        steps.append(f"{node} ({where})" if where else str(node))
    if len(steps) > 2 * MOST:
        steps = [*steps[:MOST], f"... {len(steps) - 2 * MOST} more ...", *steps[-MOST:]]
    return " -> ".join(steps)
