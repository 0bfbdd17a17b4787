"""Rewrite: slice the weights, write the new sizes, attach the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, fx, nn

from fxprune.analysis.analysis import Analysis, Site
from fxprune.choose.planned import as_planned
from fxprune.graph.example import outline_of
from fxprune.graph.refuse_train_mode import refuse_train_mode
from fxprune.graph.tensors import named_tensors
from fxprune.graph.values import refuse_broken
from fxprune.passes.check import Check, Pass, run_passes
from fxprune.passes.shrinking.fold_scales import fold_scales
from fxprune.passes.shrinking.rename import prefixes, rename, renamed_path
from fxprune.passes.shrinking.shrink import shrink
from fxprune.result.facts import carry_facts, numbered_as_lists, without_weight_decay
from fxprune.result.forms import is_result
from fxprune.result.layers import layers_of
from fxprune.result.origin import origin_of
from fxprune.result.plan import Plan
from fxprune.result.pruned_module import PrunedModule, record_of
from fxprune.result.record import Record
from fxprune.result.remade import remade_values
from fxprune.result.selection import Selection

__all__ = ["rewrite"]


def rewrite(
    model: nn.Module, analysis: Analysis, plan: Plan, *, check: Check = False, run: bool = True
) -> PrunedModule:
    """Build the model that a plan gives: a new GraphModule of sliced weights, with its record.

    Args:
        model: the original; it is not changed.
        analysis: of the original, or of the graph that the plan's groups are of.
        plan: its `kept` is not read: what weights keep follows from what groups keep.
        check: verify the graph after every pass, as of `fxprune.passes.check.run_passes`.
        run: try the result on fake tensors; with False the caller has to run or compare it.

    Raises:
        PlanError: the plan is for another model.
        RewriteError: the result does not run; a bug, named by node.
        PassError: with `check`, a pass broke the graph; names it and those that ran before it.
    """
    analysis = as_planned(analysis, plan)
    selection = Selection.from_plan(analysis, plan)
    example = analysis.captured.example
    new = plan.renamed
    passes = _passes(analysis, selection, model, plan, run)
    pruned = run_passes(analysis.module, passes, example, check=check)
    assert isinstance(pruned, PrunedModule)
    sites = {
        group.name: [Site(new.get(site.name, site.name), site.dim) for site in group.sites]
        for group in analysis.groups
        if group.atom in selection.masks
    }
    origin = origin_of(model, analysis.module)
    carry_facts(model, pruned, example, origin["classes"], _shrunk(model, pruned, selection))
    numbered_as_lists(pruned)
    modules = prefixes(new)
    before = record_of(model) if is_result(model) else None
    pruned.record = Record(
        plan=replace(plan, kept=selection.kept(analysis, model.state_dict())),
        example=outline_of(example),
        options={
            "outputs": analysis.outputs,
            "split_qkv": analysis.captured.split_qkv,
            "capture": analysis.captured.way,
        },
        origin=origin,
        folded=dict(pruned.folded),
        sites=sites,
        dynamic=not analysis.captured.fixed_batch,
        ties=pruned.ties,
        layers=layers_of(pruned),
        undecayed=tuple(new.get(n, renamed_path(n, modules)) for n in without_weight_decay(model)),
        untrained=analysis.captured.untrained,
        before=before,
        constants=_constants(model, analysis.module.graph, pruned, new),
        remade={} if before else remade_values(model),
    )
    refuse_train_mode(pruned, pruned.record.untrained)
    # Where users' scripts read it before there was a record; ours read it in pickles of format 1 alone.
    pruned.meta["fxprune"] = {**vars(pruned.record), **pruned.record.options}
    return pruned


def _passes(analysis: Analysis, selection: Selection, model: nn.Module, plan: Plan, run: bool) -> list[Pass]:
    """List the passes of the rewrite in order; the first makes a new module of the analysed graph."""
    example = analysis.captured.example

    def shrunk(_: fx.GraphModule) -> PrunedModule:
        pruned = shrink(analysis, selection=selection, original=model)
        if run:
            refuse_broken(pruned, example)
        return pruned

    def folded(pruned: fx.GraphModule) -> PrunedModule:
        assert isinstance(pruned, PrunedModule)
        return fold_scales(pruned, scales=plan.scales, example=example)

    def renamed(pruned: fx.GraphModule) -> PrunedModule:
        assert isinstance(pruned, PrunedModule)
        return rename(pruned, names=plan.renamed)

    passes = [Pass("shrink", shrunk, has_values=False, same_outputs=False)]
    passes += [Pass("fold_scales", folded, has_values=False)] if plan.scales else []
    return passes + ([Pass("rename", renamed, has_values=False)] if plan.renamed else [])


def _constants(
    model: nn.Module, seen: fx.Graph, pruned: nn.Module, new: Mapping[str, str]
) -> tuple[str, ...]:
    """Return the names of a result's buffers that are none of the original's, nor follow a cast of it."""
    if is_result(model):
        return tuple(new.get(name, name) for name in record_of(model).constants)
    known = {new.get(name, name) for name, _ in named_tensors(model)}
    following = (str(n.target) for n in seen.nodes if n.op == "get_attr" and "follows_dtype" in n.meta)
    known |= {new.get(name, name) for name in following}
    return tuple(name for name, _ in pruned.named_buffers() if name not in known)


def _shrunk(model: nn.Module, pruned: nn.Module, selection: Selection) -> set[int]:
    """Return the full sizes of all that became smaller: numbers on the original that may be widths."""
    now = pruned.state_dict()
    sizes = {len(mask) for mask in selection.masks.values()}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):  # a module's extra state
            continue
        shape = now.get(name, tensor).shape
        sizes |= {full for full, kept in zip(tensor.shape, shape, strict=False) if full != kept}
    return sizes
