"""The compiler, top to bottom: analyse, decide, rewrite, certify."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxprune.analysis import Analysis, Group, Site, names_in_graph
from fxprune.branches import Branch
from fxprune.budget import Budget, Latency
from fxprune.budget.fit import fit
from fxprune.capture import example_of, trace
from fxprune.certify import Certificate, certify
from fxprune.depth import as_planned, branch_scores, check_depth, shallower
from fxprune.errors import ExampleInputError, OptionError, SiblingError
from fxprune.importance import Importance, Scores, magnitude, score
from fxprune.infer import infer
from fxprune.iterate import Between, in_steps
from fxprune.merge import merged_for_ratio
from fxprune.passes.fold_scale import fold_scales
from fxprune.passes.propagate_values import refuse_broken
from fxprune.passes.rename import rename
from fxprune.passes.shrink import shrink
from fxprune.plan import Plan, plan_of
from fxprune.pruned_module import PrunedModule, analysis_options, noise_for
from fxprune.rules.registry import DEFAULT_RULES, RuleSet
from fxprune.saved.origin import origin_of
from fxprune.select import candidates
from fxprune.selection import Selection
from fxprune.sibling import check_loads, example_for, shaped_like
from fxprune.tensors import named_tensors

__all__ = ["analyze", "apply", "prune", "verify"]

ATTENTION = ("auto", "heads", "head_dim", "merge")
OUTPUTS = ("keep", "prune")


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
        importance_options: of the criterion, e.g. `{"draws": 8}`, see `fxprune.importance`.
        example_inputs: a tensor [batch, ...] or a tuple of positional arguments, for models that do
            not record their input shape.
        example_kwargs: keyword arguments of the example call.
        exclude: module names or patterns (`"blocks.0.*"`); every weight in them stays whole, and so
            does what is coupled with it.
        attention: remove whole "heads", "head_dim" inside each head, or "auto": heads where the ratio
            leaves a whole number of them, else head dims.  "merge" is the paper's regrouping: consecutive
            heads become one, then its channels are pruned back to the old head dim (12 heads of 64 to 3
            of 256 to 3 of 64): exact with regard to the model with its heads merged, see `fxprune.merge`.
        depth: the fraction of residual branches to remove whole, 0 <= depth < 1, before any channel:
            those whose absence changes the predictions on `data` least, see `fxprune.depth`.
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
    _check_options(attention, outputs, steps)
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


def analyze(
    model: nn.Module,
    *,
    example_inputs: Any = None,
    example_kwargs: dict[str, Any] | None = None,
    outputs: str = "keep",
    split_qkv: bool = False,
    capture: str = "auto",
    strict: bool = False,
    rules: RuleSet = DEFAULT_RULES,
) -> Analysis:
    """Find which dimensions of a model's weights are coupled, and which must stay whole and why.

    Arguments as of `prune`.

    Example:
        >>> analysis = fxprune.analyze(timm.create_model("deit_tiny_patch16_224"))
        >>> print(analysis)
        >>> analysis.why("blocks.0.mlp.fc1.weight[0]", "blocks.0.mlp.fc2.weight[1]")
    """
    _check_options("auto", outputs, 1)
    example = example_of(model, example_inputs, example_kwargs)
    captured = trace(model, example.args, example.kwargs, capture=capture, split_qkv=split_qkv)
    captured.meta["example"] = example
    inference = infer(captured, rules, prune_outputs=outputs == "prune")
    analysis = Analysis(captured, inference, names_in_graph(dict(named_tensors(model)), captured, inference))
    if strict:
        analysis.refuse_missing_rules()
    return analysis


def apply(model: nn.Module, plan: Plan, **options: Any) -> fx.GraphModule:
    """Prune a model of the same architecture by an existing plan.

    `options`: `example_inputs`, `example_kwargs`, `outputs`, `split_qkv`, `capture`, `rules` as of `prune`.

    Raises:
        PlanError: the plan is for another model; names the group that does not fit.
    """
    analysis = as_planned(analyze(model, **options), plan)
    return _rewrite(model, analysis, Selection.from_plan(analysis, plan), plan.renamed, plan.scales)


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


def _rewrite(
    model: nn.Module,
    analysis: Analysis,
    selection: Selection,
    renamed: dict[str, str] | None = None,
    scales: dict[str, float] | None = None,
) -> PrunedModule:
    """Slice the weights, write the new sizes, and attach the record."""
    example = analysis.module.meta["example"]
    pruned = shrink(analysis, selection, model)
    refuse_broken(pruned, example)
    folded = fold_scales(pruned, scales or {}, example)
    pruned = rename(pruned, renamed) if renamed else pruned
    plan, new = selection.plan(analysis, model.state_dict()), renamed or {}
    sites = {
        group.name: [Site(new.get(site.name, site.name), site.dim) for site in group.sites]
        for group in analysis.groups
        if group.atom in selection.masks
    }
    pruned.meta["fxprune"] |= {
        "plan": replace(plan, renamed=new, scales=scales or {}, regrouped=analysis.regrouped),
        "folded": {new.get(name, name): fold for name, fold in folded.items()},
        "capture": analysis.capture,
        "outputs": "prune" if analysis.inference.prune_outputs else "keep",
        "split_qkv": analysis.module.meta["split_qkv"],
        "sites": sites,
        "dynamic": not any("batch size" in note for note in analysis.notes),
        "origin": origin_of(model, analysis.module),
        "example": example.map(lambda t: torch.empty_like(t, device="meta")),
    }
    return pruned


def _check_options(attention: str, outputs: str, steps: int) -> None:
    """Refuse what makes no sense before any work is done."""
    if attention not in ATTENTION:
        raise OptionError(f"attention={attention!r}: one of {', '.join(map(repr, ATTENTION))}")
    if outputs not in OUTPUTS:
        raise OptionError(f"outputs={outputs!r}: one of {', '.join(map(repr, OUTPUTS))}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise OptionError(f"steps={steps!r}: a whole number of at least 1")
