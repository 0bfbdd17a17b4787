"""Compute a model with sketches in the place of its large products: quick, and as telling of what it calls.

`a @ b` is replaced by a product of rank one, made of all of a's rows and of all of b's columns: another order
of channels, other weights or another operation anywhere show in it as they do in the product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Sketched"]

_aten = torch.ops.aten
Contract = Callable[[Tensor], Tensor]


class Sketched(TorchDispatchMode):
    """A mode in which products with a model's weights are sketches: tables that its code keeps are not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._weights = {p.untyped_storage()._cdata for p in model.parameters()}
        self._contracted: dict[Any, Tensor] = {}  # of a weight as it was: reading all is what takes time

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _EMPTY:  # whose numbers are anyone's
            return func(*args, **(kwargs or {})).zero_()
        sketch = _SKETCHES.get(func)
        if sketch is None or not any(map(self._is_weight, args)):
            return func(*args, **(kwargs or {}))
        return sketch(*args, **(kwargs or {}), of=self._contract)

    def _contract(self, b: Tensor) -> Tensor:
        """... k m -> ... m, a weight's once"""
        if not self._is_weight(b) or b.is_inference():  # which does not tell whether it was written to
            return _ramp(b, b.shape[-2]) @ b
        key = b.data_ptr(), b.shape, b.stride(), b.dtype, b._version
        if key not in self._contracted:
            self._contracted[key] = _ramp(b, b.shape[-2]) @ b
        return self._contracted[key]

    def _is_weight(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self._weights


def _ramp(like: Tensor, n: int) -> Tensor:
    """Return weights for n elements, each another."""
    return torch.linspace(0.5, 1.5, n, dtype=like.dtype, device=like.device) / math.sqrt(n)


def _product(a: Tensor, b: Tensor, *, of: Contract) -> Tensor:
    """... n k, ... k m -> ... n m, of rank one"""
    return (a @ _ramp(a, a.shape[-1])).unsqueeze(-1) * of(b).unsqueeze(-2)


def _sum(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1, of: Contract) -> Tensor:
    return beta * bias + alpha * _product(a, b, of=of)


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    *,
    of: Contract,
) -> Tensor:
    """b c ..., o c ... -> b o ..., each channel the same picture in another brightness, by the options too"""
    options = stride, padding, dilation, transposed, output_padding, groups
    shape = _aten.convolution(input.to("meta"), weight.to("meta"), None, *options).shape
    n, batched = weight.ndim - 2, input.ndim == weight.ndim
    x = input if batched else input.unsqueeze(0)
    picture = (x * _ramp(x, x.shape[1]).view(-1, *[1] * n)).sum(1, keepdim=True)
    resized = getattr(F, f"adaptive_avg_pool{n}d")(picture, shape[-n:])
    kernels = weight.transpose(0, 1).repeat(groups, *[1] * (n + 1)) if transposed else weight
    kernels = kernels.flatten(1)
    bright = of(kernels.t()) * _told_by(*stride, *padding, *dilation, *output_padding)
    out: Tensor = resized * bright.view(-1, *[1] * n)
    out = out if bias is None else out + bias.view(-1, *[1] * n)
    return out if batched else out.squeeze(0)


def _told_by(*numbers: int) -> float:
    """Return another number for other numbers, or for the same ones in another order."""
    return 1 + sum(number * (2 + math.sin(place)) for place, number in enumerate(numbers)) / 16


_EMPTY = {
    *(_aten.empty.memory_format, _aten.empty_like.default, _aten.new_empty.default),
    *(_aten.empty_strided.default, _aten.new_empty_strided.default),
}
_SKETCHES: Mapping[Any, Callable[..., Any]] = {
    _aten.mm.default: _product,
    _aten.bmm.default: _product,
    _aten.addmm.default: _sum,
    _aten.baddbmm.default: _sum,
    _aten.convolution.default: _convolution,
}
