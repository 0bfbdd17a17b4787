"""A batch of training data as one call of a model, and its labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.choose.importance.data import parts_of
from fxprune.errors import DataError, shown

__all__ = ["Call", "call_of"]


@dataclass(frozen=True)
class Call:
    """A call of a model, on `size` samples; `labels` are none of its arguments, and may be missing."""

    args: tuple[Any, ...]
    size: int
    kwargs: dict[str, Any] = field(default_factory=dict)
    labels: Any = None

    def on(self, model: nn.Module) -> Any:
        return model(*self.args, **self.kwargs)


def call_of(batch: Any) -> Call:
    """Read a batch: inputs, `(inputs, labels)`, or a mapping of keyword arguments that may hold labels.

    Raises:
        DataError: it holds no tensor.
    """
    args, kwargs, labels = parts_of(batch)
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.ndim]
    if not tensors:
        raise DataError(
            f"a batch is a tensor of inputs, (inputs, labels), or a mapping of forward's arguments, and one "
            f"is {shown(batch)}"
        )
    return Call(args, tensors[0].shape[0], kwargs, labels)
