"""Capture by torch.export, which decomposes everything into ATen calls.

What it leaves is brought to the same form as symbolic tracing's: plain inputs and outputs, weights by
their own names, dropouts and norms that follow the mode as module calls.  (`passes.lift_modules` then
makes layers of ATen calls.)
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture.arguments import guard_arguments, guard_layouts
from fxprune.capture.asked_types import (
    followed_classes,
    followed_instances,
    followed_types,
    refuse_typed_checks,
)
from fxprune.capture.autograd_functions import keep_derivatives
from fxprune.capture.beside_model import refuse_compiled, refuse_history
from fxprune.capture.call_state import (
    GRADIENTS,
    OTHER_DRAWS,
    after_a_call,
    asks_for_compilation,
    noticed_draws,
    other_second_call,
    other_without_gradients,
    refuse_difference,
)
from fxprune.capture.devices import differs_elsewhere, guard_device_of, noticed_devices, told_of_another
from fxprune.capture.exported.constants import lifted_anew
from fxprune.capture.exported.functions import Functions
from fxprune.capture.exported.marked_layers import MarkedLayers, is_norm_with_modes
from fxprune.capture.exported.plain_graph import _plain_graph, users_line
from fxprune.capture.exported.program import Exported, export_again, export_program
from fxprune.capture.exported.sizes import guard_sizes, relied_on
from fxprune.capture.held_state import HeldState
from fxprune.capture.modes.follow import follow_modes, set_mode, sets_mode
from fxprune.capture.other_shapes import refuse_other_values
from fxprune.capture.precisions import precisions_of, tells_precision
from fxprune.capture.questions import OF_DEVICE, OF_GRADIENTS, OF_LAYOUT, OF_PRECISION, noticed
from fxprune.capture.reached import called
from fxprune.capture.regions import noticed_regions
from fxprune.capture.same_tensors import noticed_comparisons, refuse_comparisons, refused_ids
from fxprune.graph.caches import has_caches
from fxprune.graph.captured import Captured
from fxprune.graph.copies import own_buffers, structural_copy
from fxprune.graph.example import Example
from fxprune.graph.tensors import device_of
from fxprune.graph.uncompiled import UncompiledGraph
from fxprune.graph.writes import hidden_writes, writes_by_layout, writes_through

__all__ = ["FIXED_BATCH", "capture_exported"]

FIXED_BATCH = "the model's code fixes the batch size: the result takes "


def capture_exported(model: nn.Module, example: Example) -> Captured:
    """Export a structural copy of a model in both modes.  Raises whatever the export raises."""
    with lifted_anew():
        return _captured(model, example)


def _captured(model: nn.Module, example: Example) -> Captured:
    if has_caches(model):  # fill them by a call that computes, before export would with fake tensors
        copy = structural_copy(model, own_buffers)
        with HeldState(copy).restored(), torch.no_grad():
            copy.eval()
            copy(*example.args, **example.kwargs)
    marked = MarkedLayers(model)
    functions, held = Functions(), HeldState(model)
    importlib.import_module("torch._dynamo")  # before builtins are patched, which it would keep
    may_run = [*called(model, held.functions())]
    kinds = (Tensor, torch.SymInt, torch.SymFloat)
    asked_types = followed_types(may_run, _type_of), followed_classes(may_run, _type_of, kinds)
    with functions.traced(), asked_types[0], asked_types[1], followed_instances(may_run, _number_for):
        refuse_typed_checks(may_run)
        set_mode(model, False)
        marked.switched()
        asked, dtypes, layouts = dict[str, None](), dict[str, None](), dict[str, None]()
        devices, regions, kind = dict[str, None](), dict[str, None](), device_of(model).type
        with (
            noticed(OF_GRADIENTS, asked),
            noticed(OF_PRECISION, dtypes),
            noticed(OF_LAYOUT, layouts),
            noticed(OF_DEVICE, devices),
            noticed_devices(devices),
            noticed_regions(kind, regions),
            noticed_draws(model, lambda: may_run) as chances,
            noticed_comparisons(model, may_run, _may_be_one) as compared,
            refused_ids(lambda x: isinstance(x, kinds) and not isinstance(x, nn.Parameter), may_run),
        ):
            exported = export_program(model, example)
        layouts |= {_line(node): None for node in writes_by_layout(exported.program.graph)}
        passing = [n for n in exported.program.graph.nodes if n.target in _PASSING]
        refuse_comparisons(compared, passing, _line)
        graph = _plain(model, exported.program, functions)

        def again(gradients_of_inputs: bool = False) -> Exported:
            with functions.hidden(model):
                return export_again(model, exported, gradients_of_inputs)

        def note_devices(plain: fx.Graph, asked: dict[str, None]) -> None:
            """Note the lines that ask for a kind of device, where the mode at hand has another graph then."""
            if not asked:
                return
            with told_of_another(kind):
                differs = differs_elsewhere(
                    plain, lambda: _plain(model, again().program, functions), device_of(model)
                )
            if differs:
                regions.update(asked)

        for other_chance in chances():
            with other_chance:
                other = again()
            refuse_difference(graph, _plain(model, other.program, functions), OTHER_DRAWS)
        with after_a_call(model, exported.example) as (changed, numbers):
            if numbers:
                second = _plain(model, again().program, functions)
                refuse_difference(graph, second, other_second_call(changed))
        for gradients in GRADIENTS[1:] if asked else ():
            with torch.set_grad_enabled(gradients != "off"):
                other = again(gradients_of_inputs=gradients == "of inputs")
            refuse_difference(graph, _plain(model, other.program, functions), other_without_gradients(asked))
        note_devices(graph, devices)
        own = relied_on(exported.program, exported.relied.names, exported.example)

        def in_precision(copy: nn.Module, given: Example) -> fx.Graph:
            other = export_again(copy, replace(exported, example=given))
            return _plain(copy, other.program, functions)

        precisions = None
        if dtypes or tells_precision(graph, model, exported.example):
            precisions = precisions_of(
                *(graph, model, exported.example, in_precision), asked=bool(dtypes), autocast=bool(dtypes)
            )

        def trace_training() -> fx.Graph:
            set_mode(model, True)
            marked.switched()
            with (
                noticed_draws(model, lambda: may_run) as chances,
                noticed(OF_LAYOUT, layouts),
                noticed(OF_DEVICE, of_training := dict[str, None]()),
                noticed_devices(of_training),
                noticed_regions(kind, regions),
            ):
                program = again()
            plain = _plain(model, program.program, functions)
            note_devices(plain, of_training)
            for other_chance in chances():
                with other_chance:
                    later = again()
                refuse_difference(plain, _plain(model, later.program, functions), OTHER_DRAWS)
            # What only this mode's code asks of sizes: a guard is other code, as it is where that is traced.
            guard_sizes(plain, program.relied.beyond(own))
            return plain

        branches = bool(marked.opened) or sets_mode(may_run)
        trained = follow_modes(graph, trace_training, model, functions=held.functions, branches=branches)
    set_mode(model, False)
    marked.unmark()
    taken = exported.example
    if precisions is not None:
        precisions.guard(graph, model, taken, autocast=True)
    guard_sizes(graph, exported.relied)
    if regions:
        guard_device_of(graph, taken, regions)
    if layouts:
        inputs = [n for n in graph.nodes if n.op == "placeholder"]
        guard_layouts(graph, dict.fromkeys(inputs, next(iter(layouts))))
    guard_arguments(graph, model, taken, numbers=False, asks=next(iter(dtypes), None))
    module = UncompiledGraph(model, graph, type(model).__name__, compiled=False)
    notes = [FIXED_BATCH + exported.batches] if exported.fixed_batch else []
    notes += [*trained.lost, *keep_derivatives(model, module, taken, trained.followed)]
    refuse_history(model, module, taken, changed)
    asking = asks_for_compilation(may_run)
    if asking is not None:
        refuse_compiled(model, module, taken, asking, trains=not trained.lost)
    refuse_other_values(model, module, taken)
    return Captured(
        *(module, taken, "export", exported.fixed_batch),
        notes=tuple(notes),
        follows_mode=trained.followed,
        untrained=trained.lost,
    )


# A cast is an alias while torch.export looks (see `casts_apart`), and a dropout is a marker.
_PASSING = {torch.ops.aten.alias.default, torch.ops.fxprune.layer_marker.default}


def _may_be_one(a: Any, b: Any) -> bool:
    return a is not b and isinstance(a, Tensor) and isinstance(b, Tensor)


def _type_of(x: Any) -> type | None:
    """Return the type of what a tensor or a number stands for, while torch.export looks."""
    if isinstance(x, Tensor):
        return nn.Parameter if isinstance(x, nn.Parameter) else Tensor
    numbers = {torch.SymInt: int, torch.SymFloat: float, torch.SymBool: bool}
    return numbers.get(type(x))


def _number_for(x: Any) -> Any:
    """Return a number of the kind that a size stands for; anything else itself."""
    kind = _type_of(x) if isinstance(x, (torch.SymInt, torch.SymFloat, torch.SymBool)) else None
    return x if kind is None else kind()


def _plain(model: nn.Module, program: torch.export.ExportedProgram, functions: Functions) -> fx.Graph:
    """Return the graph of a program; what its code writes in place is a value."""
    _refuse_transforms(program.graph)
    markers = program.graph.find_nodes(op="call_function", target=torch.ops.fxprune.layer_marker.default)
    dropouts = [n for n in markers if not is_norm_with_modes(model.get_submodule(n.args[1]))]
    _refuse(writes_through(program.graph, dropouts))  # as values, dropouts would have tensors of their own
    if hidden_writes(program.graph, model) or any(map(_overwrites_read, program.graph.nodes)):
        program = program.run_decompositions({})  # nothing is decomposed: writes become values
    graph = _plain_graph(program, model)
    functions.call_in(graph, model)
    _refuse_writes_through_dropouts(graph, model)
    return graph


def _overwrites_read(node: fx.Node) -> bool:
    """Does an op write to a tensor that others read before?  Derivatives by what they read need it whole."""
    mutable = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    return mutable and isinstance(node.args[0], fx.Node) and len(node.args[0].users) > 1


def _refuse_transforms(graph: fx.Graph) -> None:
    """Refuse torch.func's transforms, which torch.export keeps as calls that enter and leave them.

    Such calls hold for one gradient mode and one batch size.
    """
    for node in graph.nodes:
        if str(getattr(node.target, "__module__", "")).startswith("torch._functorch"):
            raise NotImplementedError(
                f"it calls torch.func ({node.name.strip('_')}) at {_line(node)}, which no graph holds: write "
                f"what it computes as operations"
            )


def _refuse_writes_through_dropouts(graph: fx.Graph, model: nn.Module) -> None:
    """Refuse `y = drop(x); y += 1` where x is read again: in eval mode both are one tensor, in train two."""
    before = hidden_writes(graph, model)
    dropouts = [n for n in graph.nodes if n.op == "call_module" and "maybe_itself" not in n.meta]
    for node in dropouts:
        node.meta["maybe_itself"] = not is_norm_with_modes(model.get_submodule(str(node.target)))
    _refuse(node for node in hidden_writes(graph, model) if node not in before)


def _refuse(writes: Iterable[fx.Node]) -> None:
    for node in writes:
        raise NotImplementedError(f"{node.name} at {_line(node)} writes in place to what a dropout passes on")


def _line(node: fx.Node) -> str:
    return node.meta.get("where") or users_line(node.meta.get("stack_trace")) or node.name
