"""`fxprune.apply`: an existing plan on a model of the same architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from fxprune.analysis.analyze import analyze
from fxprune.choose.planned import as_planned
from fxprune.compiler.coordinates import scale_norms
from fxprune.compiler.native.own_class import in_form
from fxprune.compiler.rebase import rebased
from fxprune.graph.nests import Value
from fxprune.passes.check import Check
from fxprune.result.forms import PrunedModel
from fxprune.result.plan import Plan
from fxprune.rules.registry import DEFAULT_RULES, RuleSet

__all__ = ["apply"]


def apply(
    model: nn.Module,
    plan: Plan,
    *,
    example_inputs: Value = None,
    example_kwargs: dict[str, Value] | None = None,
    outputs: str | Sequence[str] = "keep",
    split_qkv: bool = False,
    capture: str = "auto",
    strict: bool = False,
    check: Check = False,
    rules: RuleSet = DEFAULT_RULES,
    form: str = "graph",
) -> PrunedModel:
    """Prune a model of the same architecture by an existing plan.

    Args:
        model: of the architecture that the plan was made for, with any weights; it is not changed.
        plan: of `plan_of(pruned)` or `Plan.load(file)`.  What was re-fitted on data is not part of it: the
            result is that of `prune` with `refit=False`.
        example_inputs, example_kwargs, outputs, split_qkv, capture, strict, rules: as of `prune`; as
            they were when the plan was made, since they decide how groups are named.
        check: check the graph after every pass that shrinks it, for work on passes; `trace` has the same
            option for the passes before.  What the smaller weights compute is `verify`'s to compare.
        form: "graph" or "module", as of `prune`.

    Raises:
        PlanError: the plan is for another model; names the group that does not fit.
        PassError: with `check`, a pass broke the graph; names it and those that ran before it.

    Example:
        >>> plan = fxprune.plan_of(fxprune.prune(model, 0.5))
        >>> again = fxprune.apply(model, plan)
    """
    analysis = analyze(
        model,
        example_inputs=example_inputs,
        example_kwargs=example_kwargs,
        outputs=outputs,
        split_qkv=split_qkv,
        capture=capture,
        strict=strict,
        rules=rules,
    )
    plan = replace(plan, refit={}, unfitted={}, samples=0, divergence=())
    model, analysis = rebased(model, analysis, plan.bases)
    pruned = in_form(form, model, analysis, plan, check=check)
    if plan.bases:
        scale_norms(as_planned(analysis, plan), pruned)
    return pruned
