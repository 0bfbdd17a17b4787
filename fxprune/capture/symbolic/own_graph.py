"""The graph of a result of ours, captured as it is: its generated code need not be followed."""

from __future__ import annotations

from collections.abc import Collection

from torch import fx, nn

from fxprune.graph.as_data import own_name
from fxprune.graph.captured import Captured
from fxprune.graph.example import Example
from fxprune.graph.refuse_train_mode import drop_refusals, refusals_in, refusing_paths
from fxprune.graph.tensors import called_modules

__all__ = ["captured_as_is"]


def captured_as_is(model: nn.Module, leaves: Collection[int], example: Example) -> Captured | None:
    """Copy the graph of a result, which holds both modes already; None for all other modules.

    Also None where a user put a module of more than one layer into it: its code is traced with the rest.
    """
    if not isinstance(model, fx.GraphModule) or not _is_ours(model):
        return None
    called = [model.get_submodule(path) for path in {*called_modules(model)} - refusing_paths(model)]
    if any(id(m) not in leaves and own_name(type(m)) is None for m in called):
        return None
    graph = fx.Graph()
    graph.output(graph.graph_copy(model.graph, {}))
    drop_refusals(graph, model)
    fixed = not getattr(getattr(model, "record", None), "dynamic", True)
    module = fx.GraphModule(model, graph, type(model).__name__)
    lost = refusals_in(model)
    return Captured(module, example, "symbolic", fixed_batch=fixed, notes=lost, untrained=lost)


def _is_ours(model: fx.GraphModule) -> bool:
    """Does it have a record, or nodes that only our captures make?"""
    return hasattr(model, "record") or any(
        own_name(n.target if n.op == "call_function" else type(model.get_submodule(str(n.target))))
        for n in model.graph.nodes
        if n.op in ("call_function", "call_module")
    )
