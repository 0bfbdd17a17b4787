"""What is drawn: an analysis, with the sizes before and after where there is a plan."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, TypeGuard

import torch
from torch import fx, nn

from fxprune.analysis.analysis import Analysis, analysis_of
from fxprune.analysis.analyze import analyze
from fxprune.analysis.colours import GREY, colours
from fxprune.analysis.groups import Group
from fxprune.analysis.outputs import outputs_option
from fxprune.analysis.typed_graph import Site, type_graph
from fxprune.analysis.words import Words
from fxprune.capture.example_of import example_of
from fxprune.choose.planned import analysis_behind, as_planned
from fxprune.errors import OptionError, PlanError
from fxprune.graph.captured import Captured
from fxprune.graph.tensors import device_of, named_tensors
from fxprune.graph.values import propagate_values
from fxprune.result.forms import graph_form, is_result
from fxprune.result.plan import Plan
from fxprune.result.pruned_module import plan_of, record_of
from fxprune.rules.axes import Atom, Axis, size_of
from fxprune.rules.registry import DEFAULT_RULES, RuleSet

__all__ = ["Scene", "scene_of"]


class Scene:
    """An analysis with words, colours, and the size of every axis before and after pruning.

    before, after: sizes by atom, where they differ from the analysed ones.
    gone: groups of which one element is left: that is no axis any more, and only their sites are known.
    """

    def __init__(
        self,
        analysis: Analysis,
        title: str,
        *,
        before: dict[Atom, int] | None = None,
        after: dict[Atom, int] | None = None,
        gone: list[Group] | None = None,
    ) -> None:
        self.analysis, self.title = analysis, title
        self.pruned = before is not None or after is not None
        self.groups = [*(gone or ()), *analysis.groups]
        self.words = Words(analysis)
        self._colours = colours(self.groups)
        self._before, self._after = before or {}, after or {}
        self._gone: dict[Site, int] = {}  # the size before of what is gone there
        for group in gone or ():
            for site in group.sites:
                self._gone[site] = self._gone.get(site, 1) * self.before(group.atom)

    def before(self, axis: Axis) -> int:
        """Return the size of an axis in the original."""
        return size_of(axis, self._before)

    def after(self, axis: Axis) -> int:
        """Return the size of an axis in the pruned model."""
        return size_of(axis, self._after)

    def shape(self, weight: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shape of a weight in the original and in the pruned model."""
        axes = self.analysis.weights[weight]
        before = [self.before(a) * self._gone.get(Site(weight, d), 1) for d, a in enumerate(axes)]
        return tuple(before), tuple(map(self.after, axes))

    def colour(self, group: Group | None) -> str:
        """Return a colour `#rrggbb`; grey for what is frozen."""
        return GREY if group is None else self._colours[group]

    @cached_property
    def parameters(self) -> dict[str, tuple[int, int]]:
        """Elements of each parameter (buffers are left out) before and after, by the graph's name."""
        names = {name for name, _ in self.analysis.module.named_parameters(remove_duplicate=False)}
        found = {name: self.shape(name) for name in self.analysis.weights if name in names}
        return {name: (math.prod(before), math.prod(after)) for name, (before, after) in found.items()}


def scene_of(
    what: nn.Module | Analysis,
    pruned: nn.Module | Plan | None = None,
    *,
    example_inputs: Any = None,
    example_kwargs: dict[str, Any] | None = None,
    rules: RuleSet = DEFAULT_RULES,
) -> Scene:
    """Analyse what is to be drawn, if it is not analysed already.

    A pruned model is drawn by itself (its plan holds the sizes before), or beside the original.

    Raises:
        OptionError: `what` is nothing that can be drawn.
        PlanError: `pruned` belongs to another model.
    """
    given = example_inputs is not None or example_kwargs is not None
    if given and (isinstance(what, Analysis) or (pruned is None and _carries_plan(what))):
        raise OptionError(
            f"example_inputs= are for a model that is to be analysed: this {type(what).__name__} was already"
        )
    if isinstance(what, Analysis):
        if rules is not DEFAULT_RULES:
            raise OptionError("rules= are for a model that is to be analysed: this Analysis has its own")
        return _planned(what, type(what.module).__name__, pruned)
    if not isinstance(what, nn.Module):
        raise OptionError(
            f"draw takes a model, an Analysis or a pruned model; this is a {type(what).__name__}"
        )
    if pruned is None and _carries_plan(what):
        return _of_pruned(what, rules)
    if _carries_plan(pruned):
        example = example_of(what, example_inputs, example_kwargs) if given else None
        analysis = analysis_behind(what, pruned, example, rules)
    else:
        analysis = analyze(what, example_inputs=example_inputs, example_kwargs=example_kwargs, rules=rules)
    return _planned(analysis, type(what).__name__, pruned)


def _carries_plan(module: Any) -> TypeGuard[nn.Module]:
    return is_result(module)


def _planned(analysis: Analysis, title: str, pruned: nn.Module | Plan | None) -> Scene:
    """Make a scene of the original's analysis (branches out, heads merged), with a plan's sizes after."""
    if pruned is None:
        return Scene(analysis, title)
    plan = pruned if isinstance(pruned, Plan) else plan_of(pruned)
    analysis = as_planned(analysis, plan)
    groups = {group.name: group for group in analysis.groups}
    for name, kept in plan.groups.items():
        if name not in groups or groups[name].size != kept.size:
            raise PlanError(f"the plan is for another model: this one has no {name!r} of {kept.size}")
    return Scene(analysis, title, after={groups[n].atom: kept.count for n, kept in plan.groups.items()})


def _of_pruned(pruned: nn.Module, rules: RuleSet) -> Scene:
    """Make a scene of a pruned model alone: its own axes, named as in the plan."""
    analysis = _analysis_of_pruned(graph_form(pruned), rules)
    plan = plan_of(pruned)
    sites = record_of(pruned).sites
    free = {(frozenset(g.sites), g.size): g for g in analysis.groups if g.frozen is None}
    gone, before, names = [], {}, {}
    for name, where in sites.items():
        kept = plan.groups[name]
        group = free.pop((frozenset(where), kept.count), None)
        if group is None:
            role = name.rpartition(".")[2].rstrip("0123456789")
            group = Group(name, role, Atom(kept.count), tuple(where), None)
            gone.append(group)
        names[group] = name  # what a group is called depends on the others, and some may be gone
        before[group.atom] = kept.size
    for group in free.values():
        if group.name in sites:
            names[group] = f"{group.name}_frozen"
    return Scene(analysis.renamed(names), type(pruned).__name__, before=before, gone=gone)


def _analysis_of_pruned(pruned: fx.GraphModule, rules: RuleSet) -> Analysis:
    """Analyse a result, whose graph is canonical: only values and axes are missing.  It is not changed."""
    record = record_of(pruned)
    graph = fx.Graph()
    graph.output(graph.graph_copy(pruned.graph, {}))
    module = fx.GraphModule(pruned, graph, type(pruned).__name__)
    example = record.example.map(lambda t: torch.empty_like(t, device=device_of(pruned)))
    captured = Captured(module, example, record.options["capture"], fixed_batch=not record.dynamic)
    propagate_values(module, example, captured.stand_in_batch)
    tensors = dict(named_tensors(pruned))
    outputs = outputs_option(record.options["outputs"])
    return analysis_of(type_graph(captured, rules, tensors, outputs=outputs))
