"""How a row of the field names a model: a class by its path, its options, and one example call."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Row", "given", "noise", "row", "tokens"]

Row = Callable[[], nn.Module]
Draw = Callable[[], Tensor]


def noise(*shape: int) -> Draw:
    """Two samples of normal noise, each of a shape."""
    return partial(torch.randn, 2, *shape)


def tokens(vocabulary: int, *shape: int) -> Draw:
    """Two samples of whole numbers below `vocabulary`."""
    return partial(torch.randint, vocabulary, (2, *shape))


def row(path: str, options: dict[str, Any], *args: Draw, **kwargs: Draw) -> Row:
    """A factory of the class at a path (`package.module.Class`), imported when it is called."""
    return partial(_build, path, options, args, kwargs)


def given(model: nn.Module, *args: Draw | Any, **kwargs: Draw | Any) -> nn.Module:
    """The model in eval mode with its example call noted where fxprune looks for it."""
    drawn = {name: _drawn(value) for name, value in kwargs.items()}
    model.example_input_array = drawn or tuple(map(_drawn, args))  # type: ignore[assignment]
    return model.eval()


def _build(path: str, options: dict[str, Any], args: tuple[Draw, ...], kwargs: dict[str, Draw]) -> nn.Module:
    module, _, name = path.rpartition(".")
    made = getattr(importlib.import_module(module), name)(**options)
    return given(made, *args, **kwargs)


def _drawn(value: Any) -> Any:
    return value() if isinstance(value, partial) else value
