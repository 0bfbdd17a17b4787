"""Losses: of each element, or added up; a mean over an axis that shrinks is taken over what is kept."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from fxprune.graph.nests import leaves
from fxprune.rules import masked
from fxprune.rules.elementwise import broadcast, lone
from fxprune.rules.registry import Flow, NotCovered, Typed, rule

_WHY = "a loss is taken over it"


def _masked(function: Callable[..., Tensor], scale: str | None = None) -> Callable[..., Tensor]:
    """Make the masked form of a loss: of each element, then the sum or mean over those that are kept."""

    def loss(
        input: Tensor, mask: Tensor, target: Tensor, reduction: str | int = "mean", **options: object
    ) -> Tensor:
        given = {} if scale is None or scale not in options else {scale: options[scale]}
        if options.get("weight") is not None:
            given["weight"] = options["weight"]
        each = function(input, target, reduction="none", **given)
        if reduction in ("none", 0):
            return each
        if reduction not in ("mean", 1):
            return (each * mask).sum()
        if scale is None and isinstance(weight := given.get("weight"), Tensor):  # a mean by weight
            return (each * mask).sum() / (weight * mask).sum()
        return masked.mean(each, mask)

    return loss


@rule("mse_loss", masked=_masked(F.mse_loss))
@rule("l1_loss", masked=_masked(F.l1_loss))
def error_axes(
    input: Typed,
    target: Typed,
    size_average: object = None,
    reduce: object = None,
    reduction: str | int = "mean",
    weight: Typed | None = None,
) -> Flow:
    """... n, ... n -> ... n; or their sum or mean"""
    if size_average is not None or reduce is not None:
        raise NotCovered("size_average and reduce are not understood: give reduction")
    out, same = broadcast(t.axes for t in (input, target, weight) if t is not None)
    if reduction in ("none", 0):
        return Flow(out, same)
    reasons = [(axis, "a removed element would count") for axis in lone(input.axes, target.axes)]
    return Flow((), same, reasons, reduced=list(out))


@rule("smooth_l1_loss", masked=_masked(F.smooth_l1_loss, "beta"))
def smooth_error_axes(
    input: Typed,
    target: Typed,
    size_average: object = None,
    reduce: object = None,
    reduction: str | int = "mean",
    beta: float = 1.0,
) -> Flow:
    """... n, ... n -> ... n; or their sum or mean"""
    return error_axes(input, target, size_average, reduce, reduction)


@rule("huber_loss", masked=_masked(F.huber_loss, "delta"))
def huber_axes(
    input: Typed,
    target: Typed,
    reduction: str | int = "mean",
    delta: float = 1.0,
    weight: Typed | None = None,
) -> Flow:
    """... n, ... n -> ... n; or their sum or mean"""
    return error_axes(input, target, reduction=reduction, weight=weight)


@rule("aten.mse_loss", masked=_masked(F.mse_loss))
@rule("aten.l1_loss", masked=_masked(F.l1_loss))
def aten_error_axes(input: Typed, target: Typed, reduction: int = 1) -> Flow:
    """Bind ATen's arguments."""
    return error_axes(input, target, reduction=reduction)


@rule("aten.smooth_l1_loss", masked=_masked(F.smooth_l1_loss, "beta"))
def aten_smooth_error_axes(input: Typed, target: Typed, reduction: int = 1, beta: float = 1.0) -> Flow:
    """Bind ATen's arguments."""
    return error_axes(input, target, reduction=reduction)


@rule(
    *("binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div", "poisson_nll_loss"),
    *("soft_margin_loss", "hinge_embedding_loss"),
)
def likelihood_axes(input: Typed, target: Typed, *args: object, result: Typed, **options: object) -> Flow:
    """... n, ... n -> ... n; their sum or mean freezes all, since the loss at zero is not zero"""
    out, same = broadcast(t.axes for t in (input, target, *leaves([args, options], Typed)))
    if result.shape == tuple(axis.size for axis in out):
        return Flow(out, same)
    return Flow(result.axes, same, frozen=[(axis, _WHY) for axis in out])


@rule("cross_entropy", "nll_loss", "cross_entropy_loss", "nll_loss_nd", "nll_loss2d")
def class_loss_axes(input: Typed, target: Typed, *args: object, result: Typed, **options: object) -> Flow:
    """b c .., b .. -> b ..; or their mean; all frozen"""
    tensors = [input, target, *leaves([args, options], Typed)]
    reasons = [(axis, _WHY) for t in tensors for axis in t.axes]
    out = (*input.axes[:1], *input.axes[2:]) if result.ndim and input.ndim > 1 else result.axes
    return Flow(out, frozen=reasons)
