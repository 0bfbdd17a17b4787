"""A batch of training data as one call of a model, and its labels."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.choose.importance.data import parts_of
from fxprune.errors import DataError, shown
from fxprune.graph.tensors import device_of, like_weights

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

    def on_teacher(self, teacher: nn.Module, student: nn.Module) -> Any:
        """Run a teacher on the student's arguments, in its own precision where that is another one."""
        ours, theirs = like_weights(student).dtype, like_weights(teacher).dtype
        if ours == theirs:
            return self.on(teacher)

        def cast(value: Any) -> Any:
            return value.to(theirs) if isinstance(value, Tensor) and value.dtype == ours else value

        args, kwargs = pytree.tree_map(cast, (self.args, self.kwargs))
        with torch.autocast(device_of(teacher).type, enabled=False):
            return teacher(*args, **kwargs)


def call_of(batch: Any, model: nn.Module) -> Call:
    """Read a batch: inputs, `(inputs, labels)`, or a mapping of keyword arguments that may hold labels.

    Args:
        model: what is to be called: an argument that it can't do without is one, even where labels are
            called so.

    Raises:
        DataError: it holds no tensor.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    args, kwargs, labels = parts_of(batch, {p.name for p in parameters if p.default is p.empty})
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.ndim]
    if not tensors:
        raise DataError(
            f"a batch is a tensor of inputs, (inputs, labels), or a mapping of forward's arguments, and one "
            f"is {shown(batch)}"
        )
    return Call(args, tensors[0].shape[0], kwargs, labels)
