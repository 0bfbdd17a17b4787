"""Capture by torch.export: opens everything, fixes the image size, leaves ATen calls behind.

What it leaves is brought to the same form as symbolic tracing's: plain inputs and outputs, weights by
their own names, dropouts and norms that follow the mode as module calls.  (`passes.lift_modules` then
makes layers of ATen calls.)
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.arguments import guard_arguments
from fxprune.capture.autograd_functions import traced_functions
from fxprune.capture.exported.plain_graph import (
    _plain_graph,
)
from fxprune.capture.exported.sizes import assumes_more, guard_sizes
from fxprune.capture.modes.follow import follow_modes, set_mode
from fxprune.graph.caches import has_caches
from fxprune.graph.example import Example
from fxprune.graph.facts import Captured
from fxprune.graph.training_mode import follows_mode
from fxprune.graph.writes import hidden_writes
from fxprune.rules.modules import native

__all__ = ["FIXED_BATCH", "capture_exported"]

FIXED_BATCH = "the model's code fixes the batch size: the result takes the example's only"


@torch.library.custom_op("fxprune::layer_marker", mutates_args=())
def _layer_marker(x: Tensor, path: str) -> Tensor:
    """Mark where a module that follows the mode is called, while torch.export looks."""
    return x.clone()


@_layer_marker.register_fake
def _(x: Tensor, path: str) -> Tensor:
    return torch.empty_like(x)


def capture_exported(model: nn.Module, example: Example) -> Captured:
    """Export a structural copy of a model in both modes.  Raises whatever the export raises."""
    if has_caches(model):  # it runs once before export does, for real
        with torch.no_grad():
            model.eval()
            model(*example.args, **example.kwargs)
    for path, module in model.named_modules():
        if follows_mode(module) or _is_norm_with_modes(module):
            module.forward = _marked_forward(path)
    functions: dict[str, None] = {}
    with traced_functions(functions):
        graph, program, taken = _export(model, example, training=False)
        fixed_batch = taken is example
        notes = [FIXED_BATCH] if fixed_batch else []

        def trace_training(keep_eval: Collection[type]) -> fx.Graph:
            return _export(model, example, training=True, keep_eval=keep_eval)[0]

        notes += follow_modes(graph, trace_training, model)
    notes += [f"the derivative of {name} is that of its forward: torch.export opens it" for name in functions]
    set_mode(model, False)
    for module in model.modules():
        if getattr(module.__dict__.get("forward"), "layer_marker", False):
            del module.forward
    guard_sizes(graph, program, taken)
    guard_arguments(graph, model, taken, numbers=False)
    module = fx.GraphModule(model, graph, type(model).__name__)
    return Captured(module, taken, "export", fixed_batch, notes=tuple(notes))


def _is_norm_with_modes(module: nn.Module) -> bool:
    """Is this a batch or instance norm, with the forward of PyTorch's own layer?"""
    return isinstance(module, nn.modules.batchnorm._NormBase) and native(module) is not None


def _marked_forward(path: str) -> Callable[[Tensor], Tensor]:
    def forward(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.ops.fxprune.layer_marker(input, path)

    forward.layer_marker = True  # type: ignore[attr-defined]
    return forward


def _export(
    model: nn.Module, example: Example, training: bool, keep_eval: Collection[type] = ()
) -> tuple[fx.Graph, torch.export.ExportedProgram, Example]:
    """Return the graph in one mode, the program that it is of, and what that was exported with.

    That is the example itself where the program takes its batch size only.
    """
    set_mode(model, training, keep_eval)
    program, taken = _with_dynamic_batch(model, example)
    plain = program
    if hidden_writes(program.graph, model):
        plain = program.run_decompositions({})  # nothing is decomposed: writes become values
    return _plain_graph(plain, model), program, taken


def _with_dynamic_batch(model: nn.Module, example: Example) -> tuple[torch.export.ExportedProgram, Example]:
    """Export for any batch size, with two samples where the example has one; else for the example's own."""
    several = example.with_batch(2) if example.batch == 1 else replace(example)
    first: Exception | None = None
    for shapes in (_dynamic(model, several, None), _dynamic(model, several, several.batch)):
        try:
            program = _quietly(model, several, shapes)
            if assumes_more(program):
                raise NotImplementedError("what the model computes depends on the batch size")
            return program, several
        except Exception as error:  # whatever the export of user code raises
            first = first or error
    try:
        return _quietly(model, example, None), example
    except Exception:
        raise first from None  # type: ignore[misc]


def _dynamic(model: nn.Module, example: Example, batch: int | None) -> dict[str, Any]:
    """Make the first dimension of every tensor dynamic, or of those alone of a certain batch size."""

    def dynamic(value: Any) -> Any:
        batched = isinstance(value, Tensor) and value.ndim > 0 and batch in (None, value.shape[0])
        return {0: torch.export.Dim.DYNAMIC} if batched else None

    names = list(inspect.signature(model.forward).parameters)
    return {
        **dict(zip(names, pytree.tree_map(dynamic, example.args), strict=False)),
        **pytree.tree_map(dynamic, example.kwargs),
    }


def _quietly(model: nn.Module, example: Example, shapes: Any) -> torch.export.ExportedProgram:
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        # Before it raises some errors, it prints the graph so far.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            fresh = example.map(Tensor.clone)  # export marks what it is given
            return torch.export.export(model, fresh.args, fresh.kwargs, dynamic_shapes=shapes, strict=False)
    finally:
        log.setLevel(level)
