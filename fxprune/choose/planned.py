"""The analysis of the graph that a plan's groups are of."""

from __future__ import annotations

from torch import nn

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.analyze import AnalysisOptions, analyzed
from fxprune.analysis.branches import find_branches
from fxprune.choose.depth import without_branches
from fxprune.choose.merge_heads import merged_by_name
from fxprune.errors import PlanError
from fxprune.graph.example import Example
from fxprune.result.plan import Plan
from fxprune.result.pruned_module import noise_for, record_of
from fxprune.rules.registry import DEFAULT_RULES, RuleSet

__all__ = ["analysis_behind", "as_planned", "options_behind"]


def as_planned(analysis: Analysis, plan: Plan) -> Analysis:
    """Merge the heads and leave out the branches that a plan says; the analysis itself if that is done.

    Raises:
        PlanError: the model has no branch or heads of a name that the plan speaks of.
    """
    if analysis.regrouped == plan.regrouped and analysis.removed == plan.removed:
        return analysis
    analysis = merged_by_name(analysis, plan.regrouped)
    if not plan.removed:
        return analysis
    known = {b.name: b for b in find_branches(analysis.module, analysis.rules)}
    for name in plan.removed:
        if name not in known:
            raise PlanError(f"the plan is for another model: this one has no residual branch {name!r}")
    return without_branches(analysis, [known[name] for name in plan.removed])


def analysis_behind(
    model: nn.Module,
    pruned: nn.Module,
    example: Example | None = None,
    rules: RuleSet = DEFAULT_RULES,
) -> Analysis:
    """Analyse the original of a pruned model as it was when it was pruned.

    The plan's groups are those of `as_planned(analysis_behind(model, pruned), plan_of(pruned))`.

    Args:
        example: the call to capture; of the shapes that the model was pruned with by default.

    Raises:
        PlanError: `pruned` was not made by fxprune.
    """
    example = example or noise_for(pruned, model, None)
    return analyzed(model, example, options_behind(pruned, rules))


def options_behind(pruned: nn.Module, rules: RuleSet = DEFAULT_RULES) -> AnalysisOptions:
    """Return the options that the original was analysed with when it was pruned."""
    return AnalysisOptions(**record_of(pruned).options, rules=rules)
