"""Shapes of the layers that networks are mostly made of: torch takes milliseconds for each on fake tensors.

None where anything is out of the ordinary: torch then gives the answer, or the error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["quick_shape"]

Shape = tuple[int, ...] | None


def quick_shape(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Shape:
    """The shape of what a module or a function gives; dtype and device are those of the first argument."""
    if not args or not _plain(args[0]):
        return None
    if type(layer) in _MODULES:
        return _MODULES[type(layer)](layer, *args, **kwargs)
    return _FUNCTIONS[layer](*args, **kwargs) if layer in _FUNCTIONS else None


def _plain(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_contiguous()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Shape:
    """`... i, o i -> ... o`"""
    fits = x.shape[-1:] == weight.shape[1:] and (bias is None or bias.shape == weight.shape[:1])
    return (*x.shape[:-1], len(weight)) if fits and x.dtype == weight.dtype else None


def _batch_norm(x: Tensor, *channels: Any, **named: Any) -> Shape:
    """`b c ..., c -> b c ...`"""
    fits = all(t.shape == x.shape[1:2] for t in (*channels, *named.values()) if isinstance(t, Tensor))
    return tuple(x.shape) if fits else None


def _layer_norm(x: Tensor, normalized_shape: Sequence[int], *weights: Any, **named: Any) -> Shape:
    """`... c, c -> ... c`"""
    whole = tuple(normalized_shape)
    tensors = [t for t in (*weights, *named.values()) if isinstance(t, Tensor)]
    fits = tuple(x.shape[x.ndim - len(whole) :]) == whole
    fits = fits and all(t.shape == whole and t.dtype == x.dtype for t in tensors)
    return tuple(x.shape) if fits else None


_FUNCTIONS: dict[Any, Callable[..., Shape]] = {
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
}
_MODULES: dict[type[nn.Module], Callable[..., Shape]] = {
    nn.Linear: lambda m, x: _linear(x, m.weight, m.bias),
    nn.BatchNorm1d: lambda m, x: _batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias),
    nn.BatchNorm2d: lambda m, x: _batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias),
    nn.LayerNorm: lambda m, x: _layer_norm(x, m.normalized_shape, m.weight, m.bias),
}
