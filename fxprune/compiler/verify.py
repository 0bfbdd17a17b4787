"""`fxprune.verify`: a result against its original, in float64."""

from __future__ import annotations

from torch import nn

from fxprune.capture.held_state import HeldState
from fxprune.capture.trace import example_of
from fxprune.certify.certificate import Certificate, certify, same_function
from fxprune.certify.weights import PlannedWeights, settle_rounding
from fxprune.choose.planned import analysis_behind, as_planned
from fxprune.compiler.rebase import rebased
from fxprune.errors import CertificateError, OptionError, PlanError
from fxprune.graph.nests import Value
from fxprune.graph.tensors import device_of
from fxprune.result.forms import graph_form
from fxprune.result.layers import replaced_layers
from fxprune.result.pruned_module import noise_for, plan_of, record_of
from fxprune.result.remade import as_it_was
from fxprune.result.selection import Selection
from fxprune.rules.registry import DEFAULT_RULES, RuleSet

__all__ = ["verify"]


def verify(
    model: nn.Module,
    pruned: nn.Module,
    *,
    example_inputs: Value = None,
    example_kwargs: dict[str, Value] | None = None,
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

    Where the plan changes bases first (`plan.bases`), the model is brought to these coordinates, which must
    leave what it computes the same in float64, and is held against the result there.

    An instance of the model's own class (form="module") is held against the graph that it equals, and that
    graph against the masked original: the certificate is the larger error.

    Args:
        model: the original, with the weights that it had when it was pruned.
        pruned: what `prune`, `apply` or `load` made of it, in either form.
        example_inputs, example_kwargs: the call to compare, as of `prune`; by default noise of the shape
            that the model was pruned with.
        batch: samples of that noise, 3 by default.
        rules: those that it was pruned with.

    Raises:
        PlanError: `pruned` was not made by fxprune, or from another model, or a layer of it was replaced.
        CertificateError: no values to compare, or on two devices, or the capture differs from the model.
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
    here, there = device_of(model), device_of(pruned)
    if here != there:
        raise CertificateError(
            f"the model is on {here} and the pruned one on {there}: bring both to one device, since "
            f"rounding differs from one to another"
        )
    if example_inputs is None and example_kwargs is None:
        example = noise_for(pruned, model, 3 if batch is None else batch)
    elif batch is not None:
        raise OptionError(
            "batch= is for noise, and example_inputs= have a batch of their own: give one of them"
        )
    else:
        example = example_of(model, example_inputs, example_kwargs)
    plan, graph = plan_of(pruned), graph_form(pruned)
    model = as_it_was(model, record_of(pruned).remade, example)
    model, analysis = rebased(model, analysis_behind(model, graph, example, rules), plan.bases)
    analysis = as_planned(analysis, plan)
    selection = Selection.from_plan(analysis, plan)
    if plan.bases:
        settle_rounding(PlannedWeights(model, graph, analysis, selection), graph)
    with HeldState(model).restored(forget=True):  # tables that code keeps of runs in float64
        found = certify(model, graph, analysis, selection, example)
        return found if graph is pruned else found.beside(same_function(graph, pruned, example))
