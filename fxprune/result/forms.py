"""The two forms of a result: a graph, and an instance of the user's own class that equals a graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fxprune.errors import PlanError
from fxprune.graph.tensors import called_modules, named_tensors
from fxprune.result.pruned_module import FORM, PrunedModule, record_of
from fxprune.result.record import Record
from fxprune.rules.modules import native

__all__ = ["PrunedModel", "attach", "graph_form", "is_result", "with_record"]

# A `PrunedModule`, or an instance of the user's own class, whose attributes the user knows and we do not.
PrunedModel: TypeAlias = Any


@dataclass(frozen=True)
class Form:
    """What an instance of the user's own class carries, in its `__dict__`: no module, no tensor of it shows.

    graph: what it equals; its tensors that the instance has are on the meta device here.
    apart: layers of the graph that the instance has a class of its own for.
    """

    record: Record
    graph: PrunedModule
    apart: frozenset[str] = field(default_factory=frozenset)


def is_result(module: object) -> bool:
    """Was it made by fxprune, in either form?"""
    try:
        return isinstance(module, nn.Module) and record_of(module) is not None
    except PlanError:
        return False


def attach(instance: nn.Module, graph: PrunedModule, *, shared: bool = True) -> None:
    """Let an instance of the user's own class carry the record of a graph that it equals.

    shared: others use the graph too, and a copy is carried; else the graph itself, stripped of its numbers.
    """
    own = {name for name, _ in named_tensors(instance)}
    outline = {id(t): _outline(t) for name, t in named_tensors(graph) if name in own}
    modules = dict(instance.named_modules(remove_duplicate=False))
    apart = {
        path
        for path, layer in graph.named_modules(remove_duplicate=False)
        if path in modules and native(layer) is not None and type(modules[path]) is not type(layer)
    }
    if shared:
        skeleton = copy.deepcopy(graph, dict(outline))
    else:
        skeleton = graph
        for module in graph.modules():
            for held in (module._parameters, module._buffers):
                for name, t in held.items():
                    held[name] = outline.get(id(t), t)  # type: ignore[assignment]
    vars(instance)[FORM] = Form(graph.record, skeleton, frozenset(apart))


def graph_form(pruned: nn.Module) -> PrunedModule:
    """Return a result's graph: itself, or what an instance equals, on the instance's layers and tensors.

    Raises:
        PlanError: it was not made by fxprune.
    """
    if isinstance(pruned, PrunedModule):
        return pruned
    record_of(pruned)
    form: Form = vars(pruned)[FORM]
    graph = copy.deepcopy(form.graph)
    graph.record = form.record
    modules = dict(pruned.named_modules(remove_duplicate=False))
    for path in called_modules(graph):
        if path in modules and path not in form.apart:
            parent, _, leaf = path.rpartition(".")
            graph.get_submodule(parent)._modules[leaf] = modules[path]
    tensors = dict(named_tensors(pruned))
    for path, module in graph.named_modules(remove_duplicate=False):
        for held in (module._parameters, module._buffers):
            for leaf in held:
                name = f"{path}.{leaf}".lstrip(".")
                if name in tensors:
                    held[leaf] = tensors[name]
    graph.restore(graph.ties, {path: module.training for path, module in modules.items()})
    return graph


def with_record(result: nn.Module, change: Callable[[Record], Record]) -> nn.Module:
    """Change the record that a result carries, in either form; returns the result."""
    if isinstance(result, PrunedModule):
        result.record = change(result.record)
    else:
        form: Form = vars(result)[FORM]
        record = change(form.record)
        form.graph.record = record
        vars(result)[FORM] = replace(form, record=record)
    return result


def _outline(t: Tensor) -> Tensor:
    """Return the tensor without its numbers."""
    empty = torch.empty_like(t, device="meta")
    return nn.Parameter(empty, requires_grad=t.requires_grad) if isinstance(t, nn.Parameter) else empty
