"""One decision made real: bases, slices, norms, re-fit; and what it costs, tried on a few samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from fxprune.analysis.analysis import Analysis
from fxprune.choose.budget.measured import idle_parameters
from fxprune.choose.decide import Decision, Trial
from fxprune.choose.importance.data import batches_of
from fxprune.choose.importance.reading import reading_of
from fxprune.choose.planned import as_planned
from fxprune.choose.request import Request
from fxprune.compiler.coordinates import in_chosen_bases, scale_norms
from fxprune.compiler.native.own_class import in_form
from fxprune.compiler.refit.refit import refit
from fxprune.compiler.refit.walk import Sides
from fxprune.graph.nests import Value
from fxprune.result.forms import graph_form
from fxprune.result.measure import parameters_of
from fxprune.result.plan import Plan
from fxprune.result.pruned_module import plan_of
from fxprune.result.selection import Selection

__all__ = ["Rewriter", "pruned_once", "trial_of"]


def pruned_once(
    model: nn.Module,
    analysis: Analysis,
    decision: Decision,
    *,
    form: str = "graph",
    like: nn.Module | None = None,
    refit_data: Iterable[Value] | None = None,
    **refit_options: Value,
) -> tuple[Decision, nn.Module]:
    """Prune a model by a decision; return the decision in the coordinates chosen for it, and the result.

    Args:
        analysis: of the model, with all its branches.
        form, like: as of `in_form`.
        refit_data: batches to solve layers again on; None: they keep their slices.
        refit_options: of `refit`.
    """
    decision, rebased = in_chosen_bases(decision, model, analysis)
    pruned = in_form(form, rebased, decision.analysis, decision.plan, like=like)
    if decision.plan.bases:
        scale_norms(decision.analysis, pruned)
    if refit_data is not None:
        known = decision.derivatives.lengths
        refit(decision.analysis, pruned, refit_data, lengths=known, **refit_options)
    return decision, pruned


FEW = 5e-4  # of the parameters: far below what a budget is met by


@dataclass(frozen=True)
class Rewriter:
    """What plans give of one model, in the form that is asked for, to be measured before one is chosen.

    An instance is built where it differs from its graph in that: it takes another time, and keeps, or even
    calls, what the graph does not use.
    """

    model: nn.Module
    form: str

    def __call__(self, analysis: Analysis, plan: Plan, measure: str) -> nn.Module:
        idle = sum(p.numel() for p in idle_parameters(self.model, analysis))
        alike = measure != "latency" and idle <= FEW * parameters_of(self.model)
        return in_form("graph" if alike else self.form, self.model, analysis, plan)


def trial_of(model: nn.Module, analysis: Analysis, request: Request) -> Trial:
    """Return a function that prunes by a decision and measures its KL divergence, the mean over samples.

    Its second argument is a few batches, on which layers are solved again, if at all, and which are run.
    """
    options = {**request.refit_options, "progress": False, "join": False}
    log_probabilities = options.get("log_probabilities")

    def divergence(decision: Decision, data: Sequence[Value]) -> float:
        refit_data = data if request.solves else None
        decision, pruned = pruned_once(model, analysis, decision, refit_data=refit_data, **options)
        plan = plan_of(pruned)
        planned = as_planned(decision.analysis, plan)
        sides = Sides(planned, Selection.from_plan(planned, plan), graph_form(pruned))
        batches = batches_of(data, planned, "kl")
        return sides.divergence(batches, reading_of(planned, log_probabilities))

    return divergence
