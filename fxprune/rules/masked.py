"""Take statistics over kept elements only, written out by hand: the `masked` forms of ops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.rules.registry import Dims, dims_of

__all__ = [
    *("batch_norm", "group_norm", "layer_norm", "mean", "normalize", "pairwise_distance"),
    *("rms_norm", "std", "std_mean", "var", "var_mean"),
]

P = ParamSpec("P")


def _count(x: Tensor, mask: Tensor, dims: list[int]) -> Tensor:
    # At least 1: a group of which nothing is kept divides no zero by zero.
    return mask.to(x).expand_as(x).sum(dims, keepdim=True).clamp_min(1)


def _mean(x: Tensor, mask: Tensor, dims: list[int]) -> Tensor:
    return (x * mask).sum(dims, keepdim=True) / _count(x, mask, dims)


def _variance(x: Tensor, mask: Tensor, dims: list[int], correction: float = 0) -> Tensor:
    squares = (x - _mean(x, mask, dims)).square() * mask
    return squares.sum(dims, keepdim=True) / (_count(x, mask, dims) - correction)


def _squeezed(value: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    return value if keepdim else value.squeeze(dims)


def layer_norm(
    input: Tensor,
    mask: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    **_: object,
) -> Tensor:
    dims = list(range(-len(normalized_shape), 0))
    normed = (input - _mean(input, mask, dims)) / (_variance(input, mask, dims) + eps).sqrt()
    return _affine(normed, weight, bias)


def rms_norm(
    input: Tensor,
    mask: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    **_: object,
) -> Tensor:
    dims = list(range(-len(normalized_shape), 0))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(input / (_mean(input.square(), mask, dims) + eps).sqrt(), weight, None)


def group_norm(
    input: Tensor,
    mask: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    **_: object,
) -> Tensor:
    x = input.unflatten(1, (num_groups, -1))  # type: ignore[no-untyped-call]
    m = mask.unsqueeze(1)
    if mask.shape[1] > 1:
        m = mask.unflatten(1, (num_groups, -1))  # type: ignore[no-untyped-call]
    dims = list(range(2, x.ndim))
    normed = ((x - _mean(x, m, dims)) / (_variance(x, m, dims) + eps).sqrt()).flatten(1, 2)
    shape = [-1] + [1] * (input.ndim - 2)
    return _affine(
        normed,
        None if weight is None else weight.reshape(shape),
        None if bias is None else bias.reshape(shape),
    )


def batch_norm(
    input: Tensor,
    mask: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **_: object,
) -> Tensor:
    """Normalise by running statistics; in training or without them, by the batch's (standardised weights)."""
    if not training and running_mean is not None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, 0.0, eps)
    dims = [d for d in range(input.ndim) if d != 1]
    normed = (input - _mean(input, mask, dims)) / (_variance(input, mask, dims) + eps).sqrt()
    shape = [-1] + [1] * (input.ndim - 2)
    return _affine(
        normed,
        None if weight is None else weight.reshape(shape),
        None if bias is None else bias.reshape(shape),
    )


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def mean(input: Tensor, mask: Tensor, dim: Dims = None, keepdim: bool = False, **_: object) -> Tensor:
    dims = dims_of(dim, input.ndim)
    return _squeezed(_mean(input, mask, dims), dims, keepdim)


def _correction(unbiased: bool, correction: float | None) -> float:
    return float(unbiased) if correction is None else float(correction)


def var(
    input: Tensor,
    mask: Tensor,
    dim: Dims = None,
    unbiased: bool = True,
    keepdim: bool = False,
    correction: float | None = None,
) -> Tensor:
    dims = dims_of(dim, input.ndim)
    return _squeezed(_variance(input, mask, dims, _correction(unbiased, correction)), dims, keepdim)


def _root_of(variance: Callable[P, Tensor]) -> Callable[P, Tensor]:
    def deviation(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        return variance(*args, **kwargs).sqrt()

    return deviation


def _beside_mean(spread: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def both(
        input: Tensor, mask: Tensor, dim: Dims = None, keepdim: bool = False, **options: object
    ) -> tuple[Tensor, Tensor]:
        return spread(input, mask, dim, keepdim=keepdim, **options), mean(input, mask, dim, keepdim)

    return both


std = _root_of(var)
var_mean, std_mean = _beside_mean(var), _beside_mean(std)


def normalize(
    input: Tensor,
    mask: Tensor,
    p: float = 2.0,
    dim: int | list[int] | tuple[int, ...] = 1,
    eps: float = 1e-12,
    **_: object,
) -> Tensor:
    """Normalise by a norm of which each term counts as much as its mask says."""
    if p == math.inf:
        norm = (input * mask).abs().amax(dim, keepdim=True)
    elif p <= 0:  # its dimensions are frozen
        norm = input.norm(p, dim, keepdim=True)
    else:
        norm = (mask * input.abs() ** p).sum(dim, keepdim=True) ** (1 / p)
    return input / norm.clamp_min(eps)


def pairwise_distance(
    x1: Tensor, mask: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    """Compute the distance of kept elements alone: `eps` is added to each difference, so that zeros count."""
    norm: Tensor = torch.linalg.vector_norm((x1 - x2 + eps) * mask, p, -1, keepdim)
    return norm
