"""Capture by torch.export: opens everything, fixes the image size, leaves ATen calls behind.

What it leaves is brought to the same form as symbolic tracing's: plain inputs and outputs, weights by
their own names, dropouts as module calls.  (`passes.lift_modules` then makes layers of ATen calls.)
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.autograd_functions import opened_functions
from fxprune.capture.exported.plain_graph import (
    _plain_graph,
)
from fxprune.capture.modes.follow import follow_modes, set_mode
from fxprune.graph.training_mode import follows_mode
from fxprune.graph.writes import hidden_writes

__all__ = ["capture_exported"]


@torch.library.custom_op("fxprune::dropout_marker", mutates_args=())
def _dropout_marker(x: Tensor, path: str) -> Tensor:
    """Mark where a module that follows the mode is called, while torch.export looks."""
    return x.clone()


@_dropout_marker.register_fake
def _(x: Tensor, path: str) -> Tensor:
    return torch.empty_like(x)


def capture_exported(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[fx.GraphModule, list[str]]:
    """Export a structural copy of a model in both modes.  Raises whatever the export raises."""
    if _has_caches(model):
        with torch.no_grad():
            model.eval()(*args, **kwargs)
    for path, module in model.named_modules():
        if follows_mode(module):
            module.forward = _marked_forward(path)
    notes: list[str] = []
    functions: dict[str, None] = {}
    with opened_functions(functions):
        graph = _export(model, args, kwargs, notes, training=False)

        def trace_training(keep_eval: Collection[type]) -> fx.Graph:
            return _export(model, args, kwargs, [], training=True, keep_eval=keep_eval)

        notes += follow_modes(graph, trace_training, model)
    notes += [f"the derivative of {name} is that of its forward: torch.export opens it" for name in functions]
    set_mode(model, False)
    for module in model.modules():
        if getattr(module.__dict__.get("forward"), "dropout_marker", False):
            del module.forward
    return fx.GraphModule(model, graph, type(model).__name__), notes


def _has_caches(model: nn.Module) -> bool:
    """Do the modules' files hold an `lru_cache`?  Such a model runs once before export does.

    The cache would keep a fake tensor of the export, and give it to whatever comes next.
    """
    files = {sys.modules.get(type(m).__module__) for m in model.modules()}
    files = {f for f in files if f is not None and not f.__name__.startswith("torch.")}
    return any(isinstance(v, functools._lru_cache_wrapper) for f in files for v in vars(f).values())


def _marked_forward(path: str) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.ops.fxprune.dropout_marker(x, path)

    forward.dropout_marker = True  # type: ignore[attr-defined]
    return forward


def _export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    notes: list[str],
    training: bool,
    keep_eval: Collection[type] = (),
) -> fx.Graph:
    set_mode(model, training, keep_eval)
    program = _with_dynamic_batch(model, args, kwargs, notes)
    if hidden_writes(program.graph, model):
        program = program.run_decompositions({})  # nothing is decomposed: writes become values
    return _plain_graph(program, model)


def _with_dynamic_batch(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], notes: list[str]
) -> torch.export.ExportedProgram:
    """Export with any batch size, or else with the example's, and say so."""

    def dynamic(value: Any) -> Any:
        batched = isinstance(value, Tensor) and value.ndim > 0
        return {0: torch.export.Dim.DYNAMIC} if batched else None

    names = list(inspect.signature(model.forward).parameters)
    shapes = {
        **dict(zip(names, pytree.tree_map(dynamic, args), strict=False)),
        **pytree.tree_map(dynamic, kwargs),
    }
    try:
        return _quietly(model, args, kwargs, shapes)
    except Exception as error:
        try:
            program = _quietly(model, args, kwargs, None)
        except Exception:
            raise error from None
        notes.append("the model's code fixes the batch size: the result takes the example's only")
        warnings.warn(f"{type(model).__name__}: {notes[-1]}", stacklevel=2)
        return program


def _quietly(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> Any:
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            args, kwargs = pytree.tree_map(_fresh, (args, kwargs))
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    finally:
        log.setLevel(level)


def _fresh(value: Any) -> Any:
    """A tensor of its own for each export, which marks what it is given."""
    return value.clone() if isinstance(value, Tensor) else value
