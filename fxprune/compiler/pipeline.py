"""The compiler, top to bottom: analyse, decide, rewrite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from torch import nn

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.analyze import analyze
from fxprune.choose.budget import Budget, Latency
from fxprune.choose.decide import decide, decide_again
from fxprune.choose.importance.score import Importance
from fxprune.choose.like.like import check_loads
from fxprune.choose.request import Request
from fxprune.choose.steps import Between, carry_over
from fxprune.compiler.native.own_class import check_form, in_form
from fxprune.compiler.native.unused import idle_kept
from fxprune.compiler.once import Rewriter, pruned_once, trial_of
from fxprune.compiler.refit.refit import refit as refitted
from fxprune.graph.nests import Value
from fxprune.result.forms import PrunedModel, graph_form
from fxprune.rules.registry import DEFAULT_RULES, RuleSet

__all__ = ["prune", "prune_analyzed"]


def prune(
    model: nn.Module,
    ratio: float = 0.5,
    *,
    data: Iterable[Value] | None = None,
    importance: Importance | None = None,
    importance_options: dict[str, Value] | None = None,
    example_inputs: Value = None,
    example_kwargs: dict[str, Value] | None = None,
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
    form: str = "graph",
    refit: bool | None = None,
    basis: str | None = None,
) -> PrunedModel:
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
            keyword arguments.  Labels are not needed, but for "taylor".  Bases and the re-fit join halves of
            images to more where there are fewer than about 256.  Large batches are cut: what all layers
            give is held for 32 samples at a time, or for fewer, where batches are smaller.
        importance: what decides which channels go: "kl" (the KL divergence that removing a channel
            causes on `data`, to second order; the default with data), "kl-exact" (the same, measured
            channel by channel), "magnitude" (the default without data), "taylor", "activation",
            "random", or a function (analysis, groups) -> scores.
        importance_options: of the criterion, by name:
            "kl": `draws` (targets drawn per sample; 2, or more where there are few samples; where bases are
            chosen as well, so many that 768 are drawn), `measured`
            (samples on which residual widths are measured; one in 40), `seed`, `log_probabilities`,
            `progress`;
            "kl-exact": `at_once` (samples times channels that run together; 32), `resume` (a file to go
            on from after an interruption; of step k a file beside it, "name-k"), `log_probabilities`,
            `progress`;
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
            ratio is folded into the query projections.
        target: what `ratio` is a fraction of: "channels", "params" or "macs" (within 1 %, counted on the
            result), or "latency" (within 10 %, timed on the result; `fxprune.Latency(batch=8, threads=1)`).
        scope: "uniform" removes the same share everywhere; "global" ranks all channels together, each by
            its importance for what removing it saves; "isomorphic" ranks groups of one role and shape.
        ratios: pattern -> fraction of channels, for groups by name or by the modules that they lie in;
            the rest meets the target.
        floor: what every group keeps at least: a number of elements, or a share such as 0.1.  By default
            enough to leave a network that works: 8 of the channels that a norm runs over; and, where the
            ratio is not the same for every group (`scope`, `target`), 4 of other channels and a tenth of
            the group, or what the ratio leaves of each where that is less; never more than half of it; of
            heads one.
            `floor=1` lets a ranking take all but one.  `plan_of(result).floored` and the
            report name the groups that a floor held up.
        round_to: keep widths that are multiples of this.
        steps: prune in so many steps, each scored anew.
        between: called between steps as `between(pruned, step)`; train `pruned` in place.
        outputs: "keep" the model's outputs whole, or "prune" those that are features; or the names of those
            that stay whole (`["logits"]`; keys, fields and places: "features.0", and patterns), while the
            others may shrink.
        split_qkv: cut fused projections apart, so that values keep a width of their own beside that of
            queries and keys; and let a ranking give them one where code has one number for both.  With
            `form="module"` also heads one beside the stream, where code has the stream's width alone.
        capture: "auto", "symbolic" or "export", see `trace`.
        strict: raise MissingRuleError where an op has no rule, rather than freeze its axes.
        rules: what is known about ops; `DEFAULT_RULES.extended({...})` teaches it your own.
        form: "graph" for a GraphModule, or "module" for an instance of the model's own class: its own code,
            methods, blocks and configuration on the sliced weights, proved equal to the graph in float64.
            The numbers that its code reads are edited; an attention scale that follows the head dim is
            folded into the query projection, and recorded.  A module whose code can't hold the new sizes is
            replaced by its part of the graph, in its place: the report says which and why.
        refit: solve every linear layer and convolution that reads a shrunk axis again, and the last ones, in
            closed form, so that their outputs on `data` stay what they were; each with a ridge that is
            chosen on held-out samples, and kept as it is where none helps there.  No labels, no training.
            By default where there is data; between steps, before the first `between` only.
        basis: "principal" chooses the coordinates of every axis that allows it (`analyze(model)` says which)
            so that those that go cost least, before any go: of queries and keys, of values, of the residual
            stream with its norms kept.  The model computes the same in them; `plan_of(result).bases` has
            them.  "given" selects among the channels that there are.  By default "principal" where there is
            data and nothing speaks against it (`importance` other than "kl", `steps`, `like`, "merge").

    Returns:
        A GraphModule (or an instance of the model's class) whose weights are index-selects of the model's,
        under the same names, in the same mode, on the same device.  `plan_of(result)` says what was kept, and
        what else was done to weights: `bases` (other coordinates), `refit` (solved again), `scales` (folded
        into queries).

    Raises:
        FxpruneError: one subclass per kind of failure, see `fxprune.errors`.

    Example:
        >>> pruned = fxprune.prune(timm.create_model("deit_small_patch16_224"), ratio=0.5)
        >>> assert fxprune.verify(model, pruned) < 1e-8
    """
    check_form(form)
    request = Request(
        budget=Budget(ratio, target, scope, ratios or {}, floor, round_to, own_code=form == "module"),
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
        refit=refit,
        basis=basis,
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
    return _pruned(model, analysis, request, form)


def prune_analyzed(
    model: nn.Module,
    analysis: Analysis,
    ratio: float,
    *,
    attention: str = "auto",
    scope: str = "uniform",
    round_to: int = 1,
    form: str = "graph",
) -> PrunedModel:
    """Prune a model that is analysed already, by magnitude: one analysis serves many ratios."""
    budget = Budget(ratio, scope=scope, round_to=round_to, own_code=form == "module")
    return _pruned(model, analysis, Request(budget, attention=attention), form)


def _pruned(model: nn.Module, analysis: Analysis, request: Request, form: str) -> nn.Module:
    """Decide and rewrite; in steps, decide again by what was trained between them, and rewrite anew."""
    rewriter = Rewriter(model, form)
    trial = trial_of(model, analysis, request)
    decision = decide(analysis, request, rewriter=rewriter, trial=trial)
    # Trained weights are never solved again: with `between`, the first step alone is; else the last one.
    refits_first = request.refits and (request.steps == 1 or request.between is not None)
    decision, pruned = pruned_once(
        model,
        analysis,
        decision,
        form=form,
        like=request.like,
        refit_data=request.data if refits_first else None,
        **request.refit_options,
    )
    for step in range(2, request.steps + 1):
        if request.between is not None:
            request.between(pruned, step - 1)
        part = request.part(step)
        graph = graph_form(pruned)
        retrial = partial(trial_of, graph, request=part)
        before = idle_kept(model, decision.analysis, decision.plan) if form == "module" else {}
        decision = decide_again(decision, graph, part, rewriter=rewriter, trial_of=retrial)
        smaller = in_form(form, model, decision.analysis, decision.plan)
        if request.between is not None:  # else nobody trained: carrying folded scales over would round twice
            after = idle_kept(model, decision.analysis, decision.plan) if before else {}
            carry_over(pruned, smaller, before, after)
        pruned = smaller
    if request.refits and request.steps > 1 and request.between is None:
        refitted(decision.analysis, pruned, request.data, **request.refit_options)
    if request.like is not None:
        check_loads(graph_form(pruned), request.like)
    return pruned
