"""Shapes of what networks are mostly made of: torch takes up to ten milliseconds for each on fake tensors.

None where anything is out of the ordinary: torch then gives the answer, or the error.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["quick_shape"]

Shape = tuple[int, ...] | None


def quick_shape(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Shape:
    """Compute the shape that a module, function or method gives, contiguous, in the first argument's dtype.

    Args:
        layer: a method by its name.
    """
    if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return None
    if type(layer) in _MODULES:
        return _MODULES[type(layer)](layer, *args, **kwargs)
    known = _METHODS if isinstance(layer, str) else _FUNCTIONS
    return known[layer](*args, **kwargs) if layer in known else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Shape:
    """`... i, o i -> ... o`"""
    fits = x.shape[-1:] == weight.shape[1:] and (bias is None or bias.shape == weight.shape[:1])
    return (*x.shape[:-1], len(weight)) if fits and x.dtype == weight.dtype else None


def _matmul(x: Tensor, y: Any = None, **_: Any) -> Shape:
    """`... m k, ... k n -> ... m n`"""
    if not isinstance(y, Tensor) or min(x.ndim, y.ndim) < 2 or x.shape[:-2] != y.shape[:-2]:
        return None
    fits = x.shape[-1] == y.shape[-2] and x.dtype == y.dtype
    return (*x.shape[:-1], y.shape[-1]) if fits else None


def _conv2d(m: nn.Conv2d, x: Tensor) -> Shape:
    """`b (g i) h w, o i y x -> b o h' w'`"""
    weight, padding = m.weight, m.padding
    if isinstance(padding, str) or m.padding_mode != "zeros" or not _contiguous(x, weight):
        return None
    fits = x.ndim == 4 and x.shape[1] == weight.shape[1] * m.groups and len(weight) % m.groups == 0
    fits = fits and (m.bias is None or m.bias.shape == weight.shape[:1])
    if not fits or x.dtype != weight.dtype:
        return None
    spans = [d * (k - 1) for d, k in zip(m.dilation, weight.shape[2:], strict=True)]
    sizes = [
        (n + 2 * p - span - 1) // s + 1
        for n, p, span, s in zip(x.shape[2:], padding, spans, m.stride, strict=True)
    ]
    return (x.shape[0], len(weight), *sizes) if min(sizes) > 0 else None


def _batch_norm(x: Tensor, *channels: Any, **named: Any) -> Shape:
    """`b c ..., c -> b c ...`"""
    tensors = [t for t in (*channels, *named.values()) if isinstance(t, Tensor)]
    return _same(x) if all(t.shape == x.shape[1:2] for t in tensors) else None


def _layer_norm(x: Tensor, normalized_shape: Sequence[int], *weights: Any, **named: Any) -> Shape:
    """`... c, c -> ... c`"""
    whole = tuple(normalized_shape)
    tensors = [t for t in (*weights, *named.values()) if isinstance(t, Tensor)]
    fits = tuple(x.shape[x.ndim - len(whole) :]) == whole
    fits = fits and all(t.shape == whole and t.dtype == x.dtype for t in tensors)
    return tuple(x.shape) if fits else None


def _elementwise(x: Tensor, y: Any = None, **options: Any) -> Shape:
    """`..., ... -> ...`, where the second may be a number, or have fewer elements."""
    if options or not _contiguous(x):
        return None
    if not isinstance(y, Tensor):
        return tuple(x.shape) if type(y) in (int, float) else None
    fits = (x.dtype, x.device) == (y.dtype, y.device) and y.ndim <= x.ndim and _contiguous(y)
    sizes = zip(reversed(x.shape), reversed(y.shape), strict=False)
    return tuple(x.shape) if fits and all(n in (1, m) for m, n in sizes) else None


def _softmax(x: Tensor, dim: Any = None, *more: Any, **options: Any) -> Shape:
    """`... -> ...`"""
    fits = not more and not options and type(dim) is int and -x.ndim <= dim < x.ndim
    return tuple(x.shape) if fits and _contiguous(x) else None


def _viewed(x: Tensor, *sizes: Any, **named: Any) -> Shape:
    """`... -> ...`, of as many elements; one size may be -1."""
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    spelled = sizes and not named and all(type(n) is int for n in sizes)
    if not spelled or not _contiguous(x) or not x.numel():
        return None
    known = math.prod(n for n in sizes if n != -1)
    if sizes.count(-1) == 1 and known > 0 and x.numel() % known == 0:
        return tuple(x.numel() // known if n == -1 else n for n in sizes)
    return tuple(sizes) if min(sizes) > 0 and known == x.numel() else None


def _same(x: Tensor, **_: Any) -> Shape:
    """`... -> ...`"""
    return tuple(x.shape) if _contiguous(x) else None


def _contiguous(*tensors: Tensor) -> bool:
    return all(t.is_contiguous() for t in tensors)


_FUNCTIONS: dict[Any, Callable[..., Shape]] = {
    F.linear: _linear,
    operator.matmul: _matmul,
    torch.matmul: _matmul,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.gelu: _same,
    F.softmax: _softmax,
    torch.softmax: _softmax,
    **dict.fromkeys((operator.add, operator.sub, operator.mul, operator.truediv), _elementwise),
    **dict.fromkeys((torch.add, torch.sub, torch.mul), _elementwise),
}
_METHODS: dict[str, Callable[..., Shape]] = {"view": _viewed, "reshape": _viewed, "softmax": _softmax}
_MODULES: dict[type[nn.Module], Callable[..., Shape]] = {
    nn.Linear: lambda m, x: _linear(x, m.weight, m.bias),
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: lambda m, x: _batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias),
    nn.BatchNorm2d: lambda m, x: _batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias),
    nn.LayerNorm: lambda m, x: _layer_norm(x, m.normalized_shape, m.weight, m.bias),
}
_ACTIVATIONS = (nn.GELU, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid)
_MODULES |= dict.fromkeys(_ACTIVATIONS, lambda m, x: _same(x))
