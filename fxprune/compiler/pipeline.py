"""The compiler, top to bottom: analyse, decide, rewrite, certify."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import fx, nn

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.analyze import analyze
from fxprune.capture.trace import example_of
from fxprune.certify.certificate import Certificate, certify
from fxprune.choose.budget import Budget, Latency
from fxprune.choose.decide import decide, decide_again
from fxprune.choose.importance.score import Importance
from fxprune.choose.like.like import check_loads
from fxprune.choose.planned import analysis_behind, as_planned
from fxprune.choose.request import Request
from fxprune.choose.steps import Between, carry_over
from fxprune.compiler.rewrite import Rewriter, rewrite
from fxprune.errors import OptionError, PlanError
from fxprune.result.layers import replaced_layers
from fxprune.result.plan import plan_of
from fxprune.result.pruned_module import PrunedModule, noise_for
from fxprune.result.selection import Selection
from fxprune.rules.registry import DEFAULT_RULES, RuleSet

__all__ = ["prune", "prune_analyzed", "verify"]


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
    floor: int | float | None = None,
    round_to: int = 1,
    steps: int = 1,
    between: Between | None = None,
    outputs: str | Sequence[str] = "keep",
    split_qkv: bool = False,
    capture: str = "auto",
    strict: bool = False,
    rules: RuleSet = DEFAULT_RULES,
) -> fx.GraphModule:
    """Remove a fraction of every prunable channel dimension of a vision model.

    The result computes exactly what the model would with the removed channels and branches set to
    zero and every norm taken over the kept ones; tokens and their layout stay whole.  Follows the
    structure of "A Unified Pruning Framework for Vision Transformers"
    (https://arxiv.org/abs/2111.15127).  Right after pruning by half the accuracy is gone, whatever the
    criterion: fine-tune the result.

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
        importance_options: of the criterion, by name:
            "kl": `draws` (targets drawn per sample; 2, or more where there are few samples), `measured`
            (samples on which residual widths are measured; one in 40), `seed`, `log_probabilities`,
            `progress`;
            "kl-exact": `at_once` (samples times channels that run together; 32), `resume` (a file to go
            on from after an interruption), `log_probabilities`, `progress`;
            "taylor": `loss` (a function (output, labels) -> the sum over samples; cross-entropy),
            `progress`;  "activation": `progress`;  "random": `seed`;  "magnitude": none.
            `log_probabilities` is a function from the model's output to log-probabilities
            [batch, ..., classes], for models whose output is not [batch, classes] or `.logits`;
            `progress=False` hides the bar.  With `depth` and data, `log_probabilities` and `progress`
            hold for the branches too.
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
            `ratio`, `depth` and all that goes with them: it loads the result's `state_dict()` with
            strict=True, and computes the same.  Where its attention scales differ (another head dim), the
            ratio is folded into the query projections, the one exception to "every weight is an
            index-select".
        target: what `ratio` is a fraction of: "channels", "params" or "macs" (within 1 %, counted on the
            result), or "latency" (within 10 %, timed on the result; `fxprune.Latency(batch=8, threads=1)`).
        scope: "uniform" removes the same share everywhere; "global" ranks all channels together, each by
            its importance for what removing it saves; "isomorphic" ranks groups of one role and shape.
        ratios: pattern -> fraction of channels, for groups by name or by the modules that they lie in;
            the rest meets the target.
        floor: what every group keeps at least: a number of elements, or a share such as 0.1.  By default
            enough to leave a network that works: 8 of the channels that a norm runs over; and, where the
            ratio is not the same for every group (`scope`, `target`), 4 of other channels and a tenth of
            the group, or what the ratio leaves of each where that is less; never more than half of it.
            `floor=1` lets a ranking take all but one.  `plan_of(result).floored` and the
            report name the groups that a floor held up.
        round_to: keep widths that are multiples of this.
        steps: prune in so many steps, each scored anew.
        between: called between steps as `between(pruned, step)`; train `pruned` in place.
        outputs: "keep" the model's outputs whole, or "prune" those that are features; or the names of those
            that stay whole (`["logits"]`; keys, fields and places: "features.0", and patterns), while the
            others may shrink.
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
    request = Request(
        budget=Budget(ratio, target, scope, ratios or {}, floor, round_to),
        exclude=exclude,
        attention=attention,
        depth=depth,
        unit=unit,
        like=like,
        data=data,
        importance=importance,
        importance_options=importance_options or {},
        steps=steps,
        between=between,
    )
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
    return _pruned(model, analysis, request)


def prune_analyzed(
    model: nn.Module,
    analysis: Analysis,
    ratio: float,
    *,
    attention: str = "auto",
    round_to: int = 1,
) -> fx.GraphModule:
    """Return the second half of `prune` with magnitudes for importance: one analysis serves many ratios."""
    return _pruned(model, analysis, Request(Budget(ratio, round_to=round_to), attention=attention))


def _pruned(model: nn.Module, analysis: Analysis, request: Request) -> PrunedModule:
    """Decide and rewrite; in steps, decide again by what was trained between them, and rewrite anew."""
    rewriter = Rewriter(model)
    decision = decide(analysis, request.part(1 / request.steps), rewriter=rewriter)
    pruned = rewrite(model, decision.analysis, decision.plan)
    for step in range(2, request.steps + 1):
        if request.between is not None:
            request.between(pruned, step - 1)
        part = request.part(step / request.steps)
        decision = decide_again(decision, pruned, part, rewriter=rewriter)
        smaller = rewrite(model, decision.analysis, decision.plan)
        carry_over(pruned, smaller)
        pruned = smaller
    if request.like is not None:
        check_loads(pruned, request.like)
    return pruned


def verify(
    model: nn.Module,
    pruned: fx.GraphModule,
    *,
    example_inputs: Any = None,
    example_kwargs: dict[str, Any] | None = None,
    batch: int | None = None,
    rules: RuleSet = DEFAULT_RULES,
) -> Certificate:
    """Prove that a pruned model computes the right function: the largest relative error in float64.

    Runs the captured original at full size under masks (removed channels zero, norms over kept ones)
    beside the pruned model.  1e-8 or less is exact.  Weights are held against the plan as well: after
    training, `certificate.changed` names those that differ and `certificate.function` is the error with
    them put into the original.  Where constants hide something (a layer scale of zeros), random numbers
    stand for them in a second comparison; where nothing was seen for all that, the certificate is inf and
    `certificate.unseen` says why.

    Args:
        model: the original, with the weights that it had when it was pruned.
        pruned: what `prune`, `apply` or `load` made of it.
        example_inputs, example_kwargs: the call to compare, as of `prune`; by default noise of the shape
            that the model was pruned with.
        batch: samples of that noise, 3 by default.
        rules: those that it was pruned with.

    Raises:
        PlanError: `pruned` was not made by fxprune, or from another model, or a layer of it was replaced.
        CertificateError: no values to compare, or the capture differs from the model.
        OptionError: `batch` beside an example, which has a batch of its own.

    Example:
        >>> assert fxprune.verify(model, fxprune.prune(model, 0.5)) < 1e-8
    """
    replaced = replaced_layers(pruned)
    if replaced:
        said = ", ".join(f"{name} is now {what}" for name, what in list(replaced.items())[:3])
        raise PlanError(
            f"the pruned model was changed since it was pruned, and its original computes nothing to compare "
            f"it with: {said}; verify before layers are replaced"
        )
    if example_inputs is None and example_kwargs is None:
        example = noise_for(pruned, model, 3 if batch is None else batch)
    elif batch is not None:
        raise OptionError(
            "batch= is for noise, and example_inputs= have a batch of their own: give one of them"
        )
    else:
        example = example_of(model, example_inputs, example_kwargs)
    plan = plan_of(pruned)
    analysis = as_planned(analysis_behind(model, pruned, example, rules), plan)
    return certify(model, pruned, analysis, Selection.from_plan(analysis, plan), example)
