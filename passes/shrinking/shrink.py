"""The rewrite: sliced weights and re-spelled sizes, in one pass (between them the graph is invalid)."""

from __future__ import annotations

from torch import nn

from fxprune.analysis.analysis import Analysis
from fxprune.passes.shrinking.steps.count_kept import count_kept
from fxprune.passes.shrinking.steps.describe_layers import describe_layers
from fxprune.passes.shrinking.steps.draft import Draft, copied
from fxprune.passes.shrinking.steps.hide_forwards import hide_forwards
from fxprune.passes.shrinking.steps.pin_sizes import pin_sizes
from fxprune.passes.shrinking.steps.refuse_training import refuse_training
from fxprune.passes.shrinking.steps.respell import respell
from fxprune.passes.shrinking.steps.restore_counts import restore_counts
from fxprune.passes.shrinking.steps.restore_scales import restore_scales
from fxprune.passes.shrinking.steps.restore_sums import restore_sums
from fxprune.passes.shrinking.steps.select_results import select_results
from fxprune.passes.shrinking.steps.slice_weights import sliced
from fxprune.result.pruned_module import PrunedModule
from fxprune.result.selection import Selection

__all__ = ["shrink"]


def shrink(analysis: Analysis, *, selection: Selection, original: nn.Module) -> PrunedModule:
    """Make a new GraphModule with the selected channels only.

    Needs: a selection of the analysis's own groups.  Guarantees: every tensor is an index-select of the
    original's, under all of its names; shared tensors stay shared; the analysed graph and the original are
    not changed.
    """
    graph, new_of = copied(analysis.module.graph)
    root = sliced(analysis, selection, original, graph)
    draft = Draft(analysis, selection, graph, new_of, root)
    count_kept(draft)
    pin_sizes(draft)
    respell(draft)
    select_results(draft)
    restore_sums(draft)
    restore_counts(draft)
    restore_scales(draft)
    describe_layers(draft)
    hide_forwards(draft)
    refuse_training(draft)
    graph.lint()
    pruned = PrunedModule(root, graph, type(original).__name__)
    pruned.restore(
        _ties(pruned, analysis, original), {path: m.training for path, m in original.named_modules()}
    )
    return pruned


def _ties(pruned: nn.Module, analysis: Analysis, original: nn.Module) -> dict[str, str]:
    """Map the other names that the original's `state_dict` has for tensors in use to those in use."""
    present = {*pruned.state_dict()}
    state = original.state_dict(keep_vars=True)
    return {n: used for n, used in analysis.names.items() if n in state and n not in present}
