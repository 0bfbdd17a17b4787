"""The compiler, top to bottom: analyse, decide, rewrite, certify."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import fx, nn

from fxprune.analysis.analysis import Analysis, Group
from fxprune.analysis.analyze import analyze
from fxprune.analysis.branches import Branch
from fxprune.capture.trace import example_of
from fxprune.certify.certificate import Certificate, certify
from fxprune.choose.budget import Budget, Latency
from fxprune.choose.budget.fit import fit
from fxprune.choose.candidates import candidates
from fxprune.choose.depth import branch_scores, check_depth, shallower
from fxprune.choose.importance.score import Importance, Scores, magnitude, score
from fxprune.choose.like.like import check_loads, example_for, shaped_like
from fxprune.choose.merge_heads import merged_for_ratio
from fxprune.choose.steps import Between, in_steps
from fxprune.errors import ExampleInputError, OptionError, SiblingError
from fxprune.plan.plan import plan_of
from fxprune.plan.selection import Selection
from fxprune.result.pruned_module import PrunedModule, analysis_options, noise_for
from fxprune.rewrite import _rewrite, as_planned
from fxprune.rules.registry import DEFAULT_RULES, RuleSet

__all__ = ["prune", "verify"]

ATTENTION = ("auto", "heads", "head_dim", "merge")


def prune(
    model: nn.Module,
    ratio: float = 0.5,
    *,
    data: Iterable[Any] | None = None,
    importance: Importance | None = None,
    importance_options: dict[str, Any] | None = None,
    example_inputs: Any = None,
    example_kwargs: dict[str, Any] | None = None,
    exclude: str | Sequence[str] = (),
    attention: str = "auto",
    depth: float = 0.0,
    unit: str = "branch",
    like: nn.Module | None = None,
    target: str | Latency = "channels",
    scope: str = "uniform",
    ratios: Mapping[str, float] | None = None,
    floor: int | float = 1,
    round_to: int = 1,
    steps: int = 1,
    between: Between | None = None,
    outputs: str = "keep",
    split_qkv: bool = False,
    capture: str = "auto",
    strict: bool = False,
    rules: RuleSet = DEFAULT_RULES,
) -> fx.GraphModule:
    """Remove a fraction of every prunable channel dimension of a vision model.

    The result computes exactly what the model would with the removed channels and branches set to
    zero and every norm taken over the kept ones; tokens and their layout stay whole.  Follows the
    structure of "A Unified Pruning Framework for Vision Transformers"
    (https://arxiv.org/abs/2111.15127).

    Args:
        model: any traceable model, in any mode, dtype and device; it is not changed.
        ratio: the fraction removed, 0 <= ratio < 1; of channels along every prunable axis (about
            `1 - (1 - ratio)**2` of the parameters go), or of what `target` says.
        data: a small proxy set, any iterable of batches: inputs, `(inputs, labels)`, or a mapping of
            keyword arguments.  Labels are not needed, but for "taylor".
        importance: what decides which channels go: "kl" (the KL divergence that removing a channel
            causes on `data`, to second order; the default with data), "kl-exact" (the same, measured
            channel by channel), "magnitude" (the default without data), "taylor", "activation",
            "random", or a function (analysis, groups) -> scores.
        importance_options: of the criterion, e.g. `{"draws": 8}`, see `fxprune.choose.importance`.
        example_inputs: a tensor [batch, ...] or a tuple of positional arguments, for models that do
            not record their input shape.
        example_kwargs: keyword arguments of the example call.
        exclude: module names or patterns (`"blocks.0.*"`); every weight in them stays whole, and so
            does what is coupled with it.
        attention: remove whole "heads", "head_dim" inside each head, or "auto": heads where the ratio
            leaves a whole number of them, else head dims.  "merge" is the paper's regrouping: consecutive
            heads become one, then its channels are pruned back to the old head dim (12 heads of 64 to 3
            of 256 to 3 of 64): exact with regard to the model with its heads merged, see
            `fxprune.choose.merge_heads`.
        depth: the fraction of residual branches to remove whole, 0 <= depth < 1, before any channel:
            those whose absence changes the predictions on `data` least, see `fxprune.choose.depth`.
        unit: what `depth` counts: a "branch" (an attention, an FFN) or a "block", two adjacent branches
            (an attention and its FFN, or an FFN and the next attention).
        like: a smaller model of the same architecture, which decides widths, heads and depth in place of
            `ratio` and `depth`: it loads the result's `state_dict()` with strict=True, and computes the
            same.  Where its attention scales differ (another head dim), the ratio is folded into the
            query projections, the one exception to "every weight is an index-select".
        target: what `ratio` is a fraction of: "channels", "params" or "macs" (within 1 %, counted on the
            result), or "latency" (within 10 %, timed on the result; `fxprune.Latency(batch=8, threads=1)`).
        scope: "uniform" removes the same share everywhere; "global" ranks all channels together, each by
            its importance for what removing it saves; "isomorphic" ranks groups of one role and shape.
        ratios: pattern -> fraction of channels, for groups by name or by the modules that they lie in;
            the rest meets the target.
        floor: what every group keeps at least: a number of elements, or a share such as 0.1.
        round_to: keep widths that are multiples of this.
        steps: prune in so many steps, each scored anew.
        between: called between steps as `between(pruned, step)`; train `pruned` in place.
        outputs: "keep" the model's outputs whole, or "prune" those that are features.
        split_qkv: cut fused projections apart, so that values keep a width of their own beside that of
            queries and keys.
        capture: "auto", "symbolic" or "export", see `trace`.
        strict: raise MissingRuleError where an op has no rule, rather than keep its axes whole.
        rules: what is known about ops; `DEFAULT_RULES.extended({...})` teaches it your own.

    Returns:
        A GraphModule whose weights are index-selects of the model's, under the same names; in the
        same mode, on the same device.  `plan_of(result)` says what was kept.

    Raises:
        FxpruneError: one subclass per kind of failure, see `fxprune.errors`.

    Example:
        >>> pruned = fxprune.prune(timm.create_model("deit_small_patch16_224"), ratio=0.5)
        >>> assert fxprune.verify(model, pruned) < 1e-8
    """
    _check_options(attention, steps)
    check_depth(depth, unit)
    budget = Budget(ratio, target, scope, ratios or {}, floor, round_to)
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
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    samples = list(data) if isinstance(data, Iterator) else data  # it is looked at more than once
    if like is not None:
        merge, options = attention == "merge", importance_options or {}
        return _prune_like(model, analysis, like, merge, patterns, importance, samples, options)
    if attention == "merge":
        analysis, attention = merged_for_ratio(analysis, ratio, patterns), "head_dim"
    analysis = shallower(analysis, depth, unit, samples, patterns, importance_options)
    groups = candidates(analysis, patterns, attention, budget)

    def judge(analysis: Analysis, groups: Sequence[Group]) -> Scores:
        options = importance_options or {}
        return score(analysis, groups, importance, samples, relative=scope == "global", **options)

    rewrite = partial(_rewrite, model, analysis)
    if steps > 1:
        again = partial(analyze, outputs=outputs, split_qkv=split_qkv, capture=capture, rules=rules)
        return in_steps(model, analysis, groups, judge, budget, rewrite, again, steps, between)
    return fit(model, analysis, groups, judge(analysis, groups), budget, rewrite)


def prune_analyzed(model: nn.Module, analysis: Analysis, ratio: float, **options: Any) -> fx.GraphModule:
    """The second half of `prune` with magnitudes for importance: one analysis serves many ratios."""
    budget = Budget(ratio, round_to=options.get("round_to", 1))
    groups = candidates(analysis, [], options.get("attention", "auto"), budget)
    return fit(
        model, analysis, groups, magnitude(analysis, groups), budget, partial(_rewrite, model, analysis)
    )


def verify(
    model: nn.Module,
    pruned: fx.GraphModule,
    *,
    example_inputs: Any = None,
    example_kwargs: dict[str, Any] | None = None,
    batch: int = 3,
    rules: RuleSet = DEFAULT_RULES,
) -> Certificate:
    """Prove that a pruned model computes the right function: the largest relative error in float64.

    Runs the captured original at full size under masks (removed channels zero, norms over kept ones)
    beside the pruned model, on `batch` samples of noise (or on `example_inputs`).  1e-8 or less is exact.

    Raises:
        PlanError: `pruned` was not made by fxprune, or from another model.
        CertificateError: no values to compare, or the capture differs from the model.

    Example:
        >>> assert fxprune.verify(model, fxprune.prune(model, 0.5)) < 1e-8
    """
    plan = plan_of(pruned)
    if example_inputs is None and example_kwargs is None:
        example = noise_for(pruned, model, batch)
    else:
        example = example_of(model, example_inputs, example_kwargs)
    analysis = analyze(
        model,
        example_inputs=example.args,
        example_kwargs=example.kwargs,
        rules=rules,
        **analysis_options(pruned),
    )
    analysis = as_planned(analysis, plan)
    return certify(model, pruned, analysis, Selection.from_plan(analysis, plan), example)


def _prune_like(
    model: nn.Module,
    analysis: Analysis,
    like: nn.Module,
    merge: bool,
    exclude: Sequence[str],
    importance: Importance | None,
    data: Iterable[Any] | None,
    options: dict[str, Any],
) -> PrunedModule:
    """Widths, heads, depth and names of a smaller model."""
    example = example_for(like, analysis)
    outputs = "prune" if analysis.inference.prune_outputs else "keep"
    try:
        small = analyze(
            like,
            example_inputs=example.args,
            example_kwargs=example.kwargs,
            outputs=outputs,
            capture=analysis.capture,
            rules=analysis.inference.rules,
        )
    except ExampleInputError as error:
        raise SiblingError(f"like= must take what the model takes: {error}") from error

    def of_branches(branches: Sequence[Branch]) -> np.ndarray:
        return branch_scores(analysis, [(b,) for b in branches], data, options)

    sibling = shaped_like(analysis, small, of_branches, exclude, merge=merge)
    scores = score(sibling.analysis, sibling.groups, importance, data, **options)
    pruned = _rewrite(model, sibling.analysis, sibling.select(scores), sibling.renamed, sibling.scales)
    check_loads(pruned, like)
    return pruned


def _check_options(attention: str, steps: int) -> None:
    """Refuse what makes no sense before any work is done."""
    if attention not in ATTENTION:
        raise OptionError(f"attention={attention!r}: one of {', '.join(map(repr, ATTENTION))}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise OptionError(f"steps={steps!r}: a whole number of at least 1")
