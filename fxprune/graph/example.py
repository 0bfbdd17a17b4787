"""Example: the arguments of one call of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.graph.tensors import device_of, is_float

__all__ = ["PRIME_BATCH", "Example", "outline_of", "resized", "seeded_noise"]


# A batch size that divides nothing: no reshape lines up with it by accident.
PRIME_BATCH = 10007


@dataclass(frozen=True)
class Example:
    """Positional and keyword arguments for one call of the model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def with_batch(self, n: int | None) -> Example:
        """Return the same call with n samples; values repeat.  Tensors without a batch stay as they are."""
        batch = self.batch
        if n is None or batch is None:
            return self
        return self.map(lambda t: resized(t, n) if t.ndim and t.shape[0] == batch else t)

    @property
    def batch(self) -> int | None:
        """The first dimension of the first tensor that has any; others as long are taken for batched too."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        sizes = [t.shape[0] for t in leaves if isinstance(t, Tensor) and t.ndim]
        return sizes[0] if sizes else None

    def map(self, function: Any) -> Example:
        def only_tensors(value: Any) -> Any:
            return function(value) if isinstance(value, Tensor) else value

        args, kwargs = pytree.tree_map(only_tensors, (self.args, self.kwargs))
        return Example(args, kwargs)


def resized(t: Tensor, n: int, dim: int = 0) -> Tensor:
    """Return a tensor with n elements along a dimension; values repeat."""
    if n == t.shape[dim]:
        return t
    times = [1] * t.ndim
    times[dim] = -(-n // t.shape[dim])
    return t.repeat(times).narrow(dim, 0, n)


def outline_of(example: Example) -> Example:
    """Keep shapes and types (on the meta device), and the values of whole numbers where they are few."""

    def outline(t: Tensor) -> Tensor:
        if is_float(t) or t.numel() > FEW or t.is_meta:
            return torch.empty_like(t, device="meta")
        return t.detach().cpu().clone()

    return example.map(outline)


FEW = 1 << 14  # elements


def seeded_noise(shapes: Example, model: nn.Module, *, as_images: bool = False) -> Example:
    """Draw noise of the recorded shapes, on the model's device; whole numbers as recorded, or zeros.

    as_images: between 0 and 1; by default around 0.
    """
    device = device_of(model)
    generator = torch.Generator().manual_seed(0)

    def noise(t: Tensor) -> Tensor:
        if not t.is_floating_point() and not t.is_meta:
            return t.to(device)
        if not t.is_floating_point():
            return torch.zeros(t.shape, dtype=t.dtype, device=device)
        drawn = (torch.rand if as_images else torch.randn)(t.shape, generator=generator)
        return drawn.to(dtype=t.dtype, device=device)

    return shapes.map(noise)
