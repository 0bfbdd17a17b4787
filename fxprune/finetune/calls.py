"""A batch of training data as one call of a model, and its labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.choose.importance.data import LABELS
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
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    labels = None
    if isinstance(batch, Mapping):
        labels = next((batch[name] for name in LABELS if name in batch), None)
        kwargs = {str(name): value for name, value in batch.items() if name not in LABELS}
    elif isinstance(batch, (tuple, list)) and batch:
        args, labels = (batch[0],), batch[1] if len(batch) > 1 else None
    else:
        args = (batch,)
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.ndim]
    if not tensors:
        raise DataError(
            f"a batch is a tensor of inputs, (inputs, labels), or a mapping of forward's arguments, and one "
            f"is {shown(batch)}"
        )
    return Call(args, tensors[0].shape[0], kwargs, labels)
