"""`fxprune.rebase`: the same function in other coordinates."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.analyze import AnalysisOptions, analyze, analyzed
from fxprune.certify.comparison import same_draws
from fxprune.certify.float64 import Float64Interpreter, default_float64, doubled, put_tensors
from fxprune.certify.relative_error import compare
from fxprune.errors import OptionError, PlanError, RewriteError
from fxprune.graph.copies import structural_copy
from fxprune.graph.nests import Value
from fxprune.graph.tensors import floats_of, in_float64, named_tensors
from fxprune.passes.rebasing.change import changed_weights
from fxprune.passes.rebasing.random import random_bases
from fxprune.rules.registry import DEFAULT_RULES, RuleSet

__all__ = ["difference", "rebase", "rebase_analyzed", "rebased"]

TOLERANCE = 1e-8  # relative, in float64: what counts as exact, as of `Certificate.tolerance`


def rebase(
    model: nn.Module,
    bases: Mapping[str, Tensor] | None = None,
    *,
    seed: int = 0,
    example_inputs: Value = None,
    example_kwargs: dict[str, Value] | None = None,
    split_qkv: bool = False,
    capture: str = "auto",
    rules: RuleSet = DEFAULT_RULES,
) -> nn.Module:
    """Copy a model with its weights in other coordinates: it computes the same.

    Which axes allow which changes of basis is what `fxprune.analyze` finds: `group.freedom`.  Norms' weights
    and layer scales that stand in the way are folded into the layers beside them, and become ones.

    Args:
        model: any traceable model; it is not changed.
        bases: name of a basis (of `group.bases`: the group's own name, or `name:0`, `name:1`, .. where it has
            several) -> float64 [n, n], or [heads, n, n] where each head may have its own; by default a random
            one for each.  A vector x of the group becomes A x, what reads it is changed by the inverse.
        seed: of the random ones.
        example_inputs, example_kwargs, split_qkv, capture, rules: as of `prune`.

    Returns:
        A copy of the model, of the same class, with the same shapes, names and dtypes.

    Raises:
        OptionError: no basis has the name, or the axis does not allow the matrix.
        RewriteError: the copy does not compute the same in float64: a bug in a rule.

    Example:
        >>> other = fxprune.rebase(timm.create_model("deit_tiny_patch16_224"))
    """
    analysis = analyze(
        model,
        example_inputs=example_inputs,
        example_kwargs=example_kwargs,
        split_qkv=split_qkv,
        capture=capture,
        rules=rules,
    )
    return rebase_analyzed(model, analysis, random_bases(analysis, seed) if bases is None else bases)


def rebased(model: nn.Module, analysis: Analysis, bases: Mapping[str, Tensor]) -> tuple[nn.Module, Analysis]:
    """Return a model in other coordinates and its analysis, whose groups have the same names.

    Both are what was given where no basis changes.

    Raises:
        PlanError: the bases are of another model.
    """
    if not bases:
        return model, analysis
    try:
        other = rebase_analyzed(model, analysis, bases)
    except OptionError as error:
        raise PlanError(f"the plan is for another model: {error}") from error
    return other, analyzed(other, analysis.captured.example, AnalysisOptions.of(analysis))


def rebase_analyzed(model: nn.Module, analysis: Analysis, bases: Mapping[str, Tensor]) -> nn.Module:
    """Copy a model that is analysed already into other coordinates, as `rebase` does."""
    changed = changed_weights(analysis, bases)
    error = difference(analysis, changed)
    if not error < TOLERANCE:
        raise RewriteError(
            f"the model in other coordinates differs from itself by {error:.1e}: the law of an op claims too "
            f"much.  Change the basis of one group at a time to find which: {', '.join(sorted(bases))}"
        )
    by_id = {
        id(tensor): changed[analysis.names[name]]
        for name, tensor in named_tensors(model)
        if analysis.names.get(name) in changed
    }
    return structural_copy(model, lambda t: _copied(t, by_id.get(id(t))))


def _copied(t: Tensor, value: Tensor | None) -> Tensor:
    if value is None:
        return copy.deepcopy(t) if t.is_leaf else t.detach().clone()
    value = value.to(dtype=t.dtype, device=t.device)
    if isinstance(t, nn.Parameter):
        return nn.Parameter(value, requires_grad=t.requires_grad)
    return value


def difference(analysis: Analysis, changed: Mapping[str, Tensor]) -> float:
    """Return the largest relative difference that changed weights make to the outputs, in float64."""
    original, other = doubled(analysis.module), doubled(analysis.module)
    put_tensors(other, changed)
    example = analysis.captured.example.map(in_float64)
    outputs = []
    for module in (original, other):
        with torch.no_grad(), default_float64(), same_draws(original):
            outputs.append(floats_of(Float64Interpreter(module).run_on(example)))
    return compare(*outputs).error
