"""Decide: from an analysis and a request to a plan, as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from fxprune.analysis.analysis import Analysis, Group
from fxprune.analysis.branches import Branch
from fxprune.choose.basis.chosen import Chosen, chosen_bases
from fxprune.choose.best import select
from fxprune.choose.budget.fit import Fitted, fit
from fxprune.choose.budget.measured import Rewriter, idle_parameters, share_left
from fxprune.choose.candidates import candidates, refuse_unused_ratios
from fxprune.choose.depth import branch_scores, drop_branches
from fxprune.choose.importance.answers import Derivatives
from fxprune.choose.importance.compensated import compensated
from fxprune.choose.importance.data import batches_of
from fxprune.choose.importance.gathered import Gathered, gathered
from fxprune.choose.importance.kl import MEASURED
from fxprune.choose.importance.layers import layer_names, layers_by_group
from fxprune.choose.importance.predictions import draws_for
from fxprune.choose.importance.score import Scores, score
from fxprune.choose.like.like import shaped_like, sibling_analysis
from fxprune.choose.merge_heads import merged_for_ratio
from fxprune.choose.request import Request
from fxprune.choose.steps import scores_of_the_rest
from fxprune.choose.to_scale import masked_scale, measured_scale, some_of
from fxprune.errors import OptionError
from fxprune.graph.nests import Value
from fxprune.result.plan import Plan
from fxprune.result.pruned_module import PrunedModule

__all__ = ["Decision", "Trial", "decide", "decide_again"]


@dataclass(frozen=True)
class Decision:
    """What goes, and what it was chosen from.

    plan: what every group keeps, as data; `rewrite` adds what follows for each weight.
    analysis: of the graph that the plan's groups are of: without the branches that go, with heads merged.
    groups, scores: the groups that could shrink, and how much each of their elements matters.
    chosen: makes the bases that the plan's indices are in, once it is known how many stay; None: as given.
    derivatives: of predictions by layers' answers, as far as they were needed; the re-fit wants them too.
    """

    plan: Plan
    analysis: Analysis
    groups: tuple[Group, ...]
    scores: Scores
    chosen: Chosen | None = None
    derivatives: Derivatives = field(default_factory=Derivatives)


# The KL divergence that a decision causes on some batches, for the mean sample.
Trial = Callable[[Decision, Sequence[Value]], float]


def decide(
    analysis: Analysis, request: Request, *, rewriter: Rewriter, trial: Trial | None = None
) -> Decision:
    """Choose branches, then groups, then how many of their elements stay, then which, for the first step.

    Args:
        rewriter: builds what a plan gives; asked only where the budget is measured on results.
        trial: prunes for a few samples; asked only where elements of different kinds of groups compete.

    Raises:
        NothingPrunableError, BudgetError, SiblingError, OptionError: the request can't be met; says why.
    """
    if request.like is not None:
        return _decide_like(analysis, request)
    exclude, attention = list(request.exclude), request.attention
    if attention == "merge":  # at once in the first step: heads merge by whole numbers
        analysis, attention = merged_for_ratio(analysis, request.budget.ratio, exclude), "head_dim"
    analysis = drop_branches(
        analysis, request.depth, request.unit, request.data, exclude, request.branch_options
    )
    groups = candidates(analysis, exclude, attention, request.budget)  # for good: not by a step's share
    refuse_unused_ratios(analysis, groups, request.budget, request.attention)
    request = request.part(1)
    chosen, on, judged = None, analysis, _Judgement()
    if request.changes_bases:
        options = request.derivative_options
        chosen, seen = chosen_bases(analysis, groups, request.data, solved=request.refits, **options)
        if chosen is not None:
            on, judged = chosen.analysis, _Judgement(chosen.costs, chosen.alone, seen)
    judged = _judge(on, groups, request, judged)
    scores, derivatives = _comparable(on, judged, request), judged.seen.derivatives
    if trial is not None:
        untried = partial(Decision, chosen=chosen, derivatives=derivatives)
        scores = _measured(analysis, groups, scores, request, trial, untried)
    found = _fitted(analysis, groups, scores, request, rewriter)
    return replace(found, chosen=chosen, derivatives=derivatives)


def decide_again(
    before: Decision,
    trained: PrunedModule,
    request: Request,
    *,
    rewriter: Rewriter,
    trial_of: Callable[[Analysis], Trial],
) -> Decision:
    """Choose more of the same groups to go, by what the smaller model says of the elements that it has.

    What went before stays gone: its scores are -inf.

    Args:
        trial_of: makes the trial of the smaller model, of its analysis.
    """

    def judged(analysis: Analysis, groups: Sequence[Group]) -> Scores:
        scores = _comparable(analysis, _judge(analysis, groups, request, _Judgement()), request)
        return _measured(analysis, groups, scores, request, trial_of(analysis), Decision)

    scores = scores_of_the_rest(before.analysis, before.groups, before.scores, trained, judged)
    return _fitted(before.analysis, before.groups, scores, request, rewriter)


@dataclass(frozen=True)
class _Judgement:
    """Scores of groups, what the same moments say of removing each element alone, and what was gathered."""

    scores: Scores = field(default_factory=dict)
    alone: Scores = field(default_factory=dict)
    seen: Gathered = field(default_factory=Gathered)


def _judge(analysis: Analysis, groups: Sequence[Group], request: Request, known: _Judgement) -> _Judgement:
    """Score the groups that have no score; where layers can make up for what goes, by what is lost then."""
    options, data = request.score_options, request.data
    groups = [g for g in groups if g not in known.scores]
    if data is None or not (request.solves and request.criterion == "kl"):
        _refuse_unmeasured(groups, request)
        relative = request.budget.scope == "global"
        scores = score(analysis, groups, request.importance, data, relative=relative, **options)
        return replace(known, scores={**known.scores, **scores})
    layers, seen = layers_by_group(analysis, groups), known.seen
    if not layer_names(layers) <= seen.derivatives.moments.keys():
        seen = gathered(analysis, (), groups, data, **request.derivative_options)
    progress = options.get("progress", True)
    scores, alone = compensated(analysis, [*layers], data, seen.derivatives, seen.spreads, progress=progress)
    scores |= {g: seen.masked[g] for g in groups if g in seen.masked}
    others = [g for g in groups if g not in scores]
    _refuse_unmeasured(others, request)
    if others:
        scores |= _by_masks(analysis, others, data, **options)
    scores, alone = {**known.scores, **scores}, {**known.alone, **alone}
    return _Judgement(scores, alone, replace(seen, spreads={}))  # (large, and of no use any more)


def _refuse_unmeasured(by_masks: Sequence[Group], request: Request) -> None:
    """Raise OptionError where no residual width is among the groups whose removal samples may measure."""
    if request.importance_options.get("measured") and not any(g.role in MEASURED for g in by_masks):
        raise OptionError(
            "importance_options['measured'] has no effect: no residual width is scored by masks, whose "
            "estimates samples measure; leave it out, or give basis='given' and refit=False"
        )


def _comparable(analysis: Analysis, judged: _Judgement, request: Request) -> Scores:
    """Return the scores, on one scale where groups compete."""
    if not (judged.alone and request.data is not None and request.compares_groups):
        return judged.scores
    some, options = some_of(request.data, analysis), request.derivative_options
    masked = _by_masks(analysis, [*judged.alone], some, **options, measured=0)
    return masked_scale(judged.scores, judged.alone, masked)


def _measured(
    analysis: Analysis,
    groups: Sequence[Group],
    scores: Scores,
    request: Request,
    trial: Trial,
    untried: Callable[[Plan, Analysis, tuple[Group, ...], Scores], Decision],
) -> Scores:
    """Return the scores in units of divergences that trials measure, where kinds of groups compete."""
    if request.data is None or not request.compares_kinds:
        return scores
    some = some_of(request.data, analysis)

    def divergence(counts: dict[Group, int]) -> float:
        plan = select(analysis, scores, counts).plan(analysis)
        return trial(untried(plan, analysis, tuple(groups), scores), some)

    return measured_scale(groups, scores, divergence)


def _by_masks(analysis: Analysis, groups: Sequence[Group], data: Iterable[Value], **options: Value) -> Scores:
    """Score groups by masks, by as many derivatives as are taken elsewhere unless options say."""
    samples = sum(batch.size for batch in batches_of(data, analysis, "kl"))
    return score(analysis, groups, "kl", data, **{"draws": draws_for(samples), **options})


def _fitted(
    analysis: Analysis, groups: Sequence[Group], scores: Scores, request: Request, rewriter: Rewriter
) -> Decision:
    measure = share_left(rewriter.model, request.budget)
    by_kl = request.criterion in ("kl", "kl-exact")

    def plan_of_counts(fitted: Fitted) -> Plan:
        plan = select(analysis, scores, fitted.counts).plan(analysis)
        floored = tuple(group.name for group in fitted.floored)
        return replace(plan, floored=floored, discarded=_discarded(scores, fitted) if by_kl else {})

    def left(fitted: Fitted) -> float:
        return measure(rewriter(analysis, plan_of_counts(fitted), request.budget.measure))

    beside = (
        sum(p.numel() for p in idle_parameters(rewriter.model, analysis)) if request.budget.own_code else 0
    )
    found = fit(analysis, groups, scores, request.budget, left, beside)
    return Decision(plan_of_counts(found), analysis, tuple(groups), scores)


def _discarded(scores: Scores, fitted: Fitted) -> dict[str, float]:
    """Sum up what the scores say of the elements that go, by group."""
    found = {}
    for group, count in fitted.counts.items():
        gone = np.sort(scores[group], axis=-1)[..., : group.size - count]
        if gone.size and np.isfinite(gone).all():  # (-inf: gone in an earlier step)
            found[group.name] = float(gone.sum())
    return found


def _decide_like(analysis: Analysis, request: Request) -> Decision:
    """Decide by a smaller model: its widths, heads, depth and names."""
    assert request.like is not None
    small = sibling_analysis(request.like, analysis)

    def of_branches(branches: Sequence[Branch]) -> np.ndarray:
        return branch_scores(analysis, [(b,) for b in branches], request.data, request.branch_options)

    merge = request.attention == "merge"
    sibling = shaped_like(analysis, small, of_branches, list(request.exclude), merge=merge)
    unused = request.data is not None and not request.judges_by_data and not request.refits
    if unused and not sibling.analysis.removed:
        raise OptionError(
            f"data= is not looked at by importance={request.criterion!r}, and like= has as many branches: "
            f"leave out data="
        )
    judged = _judge(sibling.analysis, sibling.groups, request, _Judgement())
    scores = judged.scores
    plan = sibling.select(scores).plan(sibling.analysis)
    plan = replace(plan, renamed=sibling.renamed, scales=sibling.scales)
    derivatives = judged.seen.derivatives
    return Decision(plan, sibling.analysis, tuple(sibling.groups), scores, derivatives=derivatives)
