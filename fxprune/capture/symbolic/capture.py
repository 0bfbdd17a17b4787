"""Capture by symbolic tracing: fast, keeps modules, keeps the image size dynamic."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.fx import _symbolic_trace

from fxprune.capture.arguments import guard_arguments
from fxprune.capture.asked_types import followed_types, refuse_matches, refuse_typed_checks
from fxprune.capture.autograd_functions import keep_derivatives
from fxprune.capture.beside_model import refuse_compiled, refuse_history
from fxprune.capture.call_state import (
    GRADIENTS,
    OTHER_DRAWS,
    Gradients,
    asks_for_compilation,
    noticed_draws,
    other_second_call,
    other_without_gradients,
    refuse_difference,
)
from fxprune.capture.devices import differs_elsewhere, guard_device_of
from fxprune.capture.held_state import HeldState
from fxprune.capture.modes.follow import follow_modes, set_mode, sets_mode
from fxprune.capture.moved_modules import unmoved_modules
from fxprune.capture.number_types import AsksForNumber, shadowed_numbers
from fxprune.capture.other_shapes import refuse_other_values
from fxprune.capture.precisions import precisions_of, tells_precision
from fxprune.capture.questions import OF_GRADIENTS, noticed
from fxprune.capture.reached import called
from fxprune.capture.regions import noticed_regions
from fxprune.capture.same_tensors import noticed_comparisons, refuse_comparisons, refused_ids
from fxprune.capture.symbolic.dropped_calls import refuse_dropped_errors
from fxprune.capture.symbolic.numbers import traced_sizes
from fxprune.capture.symbolic.own_graph import captured_as_is
from fxprune.capture.symbolic.patches import kept_calls, patched_for_tracing
from fxprune.capture.symbolic.tracer import _ASSIGNED, Tracer
from fxprune.capture.symbolic.tried_calls import Place
from fxprune.capture.taught import is_taught, taught_functions
from fxprune.graph.captured import Captured
from fxprune.graph.example import Example
from fxprune.graph.modes import follows_mode
from fxprune.graph.tensors import device_of
from fxprune.graph.uncompiled import UncompiledGraph
from fxprune.graph.writes import hidden_writes, may_be_one, maybe_itself
from fxprune.rules.modules import native

__all__ = ["capture_symbolic"]


@dataclass
class _Asked:
    """What a model's code asks while it is traced, which no node says; not frozen, as it is filled then.

    gradients: the lines that ask values for their gradients.  devices: those that ask for a kind of device.
    dtypes: is it the dtype of weights that are no stand-ins?  tracing: the lines that ask for stand-ins.
    tries: where errors of a call are handled.
    """

    gradients: dict[str, None] = field(default_factory=dict)
    devices: dict[str, None] = field(default_factory=dict)
    dtypes: bool = False
    tracing: dict[str, None] = field(default_factory=dict)
    tries: dict[fx.Node, list[Place]] = field(default_factory=dict)


def _leaves(model: nn.Module, taught: frozenset[str]) -> frozenset[int]:
    """Find the modules to keep as leaves; before tracing starts, since `follows_mode` calls modules."""

    def is_leaf(m: nn.Module) -> bool:
        library = type(m).__module__.startswith("torch.nn") and bool(m._parameters)
        if is_taught(type(m), taught):
            return True
        return "forward" not in m.__dict__ and (native(m) is not None or library or follows_mode(m))

    return frozenset(id(m) for m in model.modules() if is_leaf(m))


def capture_symbolic(
    model: nn.Module,
    example: Example,
    copies: dict[int, nn.Module] | None = None,
    taught: frozenset[str] = frozenset(),
    *,
    tried: bool = True,
) -> Captured:
    """Trace a structural copy of a model in both modes.  Raises whatever the tracing raises.

    `copies`: what stands for the original's modules, by their ids: a function that the model holds may call
    one.  `tried`: hold the graph beside the model, in other shapes too.
    """
    leaves = _leaves(model, taught)
    set_mode(model, False)
    as_is = captured_as_is(model, leaves, example)
    if as_is is not None:
        return as_is
    copies = copies or {}
    trace = partial(_trace, taught=taught, told=set())
    asked, regions, kind = _Asked(), dict[str, None](), device_of(model).type
    held, changed = HeldState(model), dict[str, None]()
    may_run = [*called(model, held.functions())]
    refuse_matches(model, may_run)
    refuse_typed_checks(may_run)
    with (
        noticed(OF_GRADIENTS, asked.gradients),
        noticed_draws(model, lambda: may_run) as chances,
        noticed_comparisons(model, may_run, may_be_one) as compared,
        noticed_regions(kind, regions),
    ):
        graph = trace(
            *(model, leaves, example, copies), training=False, held=held, changed=changed, asked=asked
        )
    refuse_dropped_errors(model, graph, example, asked.tries)
    refuse_comparisons(compared, filter(maybe_itself, graph.nodes))
    if held.plain_changes():
        again = trace(model, leaves, example, copies, training=False)
        refuse_difference(graph, again, other_second_call(changed))
    for other_chance in chances():
        with other_chance:
            again = trace(model, leaves, example, copies, training=False)
        refuse_difference(graph, again, OTHER_DRAWS)
    for gradients in GRADIENTS[1:] if asked.gradients else ():
        other = trace(model, leaves, example, copies, training=False, gradients=gradients)
        refuse_difference(graph, other, other_without_gradients(asked.gradients))
    precisions = None
    if asked.dtypes or tells_precision(graph, model, example):
        precisions = precisions_of(
            *(graph, model, example),
            lambda m, x: trace(m, _leaves(m, taught), x, {}, training=False),
            asked=asked.dtypes,
            autocast=False,
        )

    def of_one_device(graph: fx.Graph, asked: _Asked, training: bool) -> bool:
        """Does code ask for a kind of device, and make another graph on another one?"""
        return bool(asked.devices) and differs_elsewhere(
            graph,
            lambda: trace(model, leaves, example, copies, training=training, elsewhere=True),
            device_of(model),
        )

    devices = asked.devices if of_one_device(graph, asked, training=False) else None
    _refuse_writes(graph, model)

    kept = dict[str, None]()

    def trace_training() -> fx.Graph:
        asked = _Asked()
        with noticed_draws(model, lambda: may_run) as chances, noticed_regions(kind, regions):
            trained = trace(model, leaves, example, copies, training=True, changed=kept, asked=asked)
        if of_one_device(trained, asked, training=True):
            regions.update(asked.devices)
        for other_chance in chances():
            with other_chance:
                again = trace(model, leaves, example, copies, training=True)
            refuse_difference(trained, again, OTHER_DRAWS)
        return trained

    trained = follow_modes(
        *(graph, trace_training, model, lambda: kept.keys() - changed, held.functions),
        branches=sets_mode(may_run),
    )
    set_mode(model, False)
    if precisions is not None:
        precisions.guard(graph, model, example, autocast=False)
    if devices or regions:
        guard_device_of(graph, example, devices or regions)
    guard_arguments(graph, model, example, numbers=True)
    module = UncompiledGraph(model, graph, type(model).__name__, compiled=False)
    notes = (*trained.lost, *keep_derivatives(model, module, example, trained.followed))
    refuse_history(model, module, example, changed)
    asking = next(iter(asked.tracing), None) or asks_for_compilation(may_run, compiling=False)
    if asking is not None:
        refuse_compiled(model, module, example, asking, trains=not trained.lost)
    if tried:
        refuse_other_values(model, module, example)
    return Captured(
        module, example, "symbolic", notes=notes, follows_mode=trained.followed, untrained=trained.lost
    )


def _trace(
    model: nn.Module,
    leaves: frozenset[int],
    example: Example,
    copies: dict[int, nn.Module],
    *,
    taught: frozenset[str],
    told: set[Place],
    training: bool,
    gradients: Gradients = "recorded",
    held: HeldState | None = None,
    changed: dict[str, None] | None = None,
    asked: _Asked | None = None,
    elsewhere: bool = False,
) -> fx.Graph:
    """Trace the model's code in one mode; what it keeps for its next call is put back, but for numbers.

    told: where code is told a dtype, since nothing comes of a stand-in there: more places are found here.
    held: what it held before.  changed: is given the names of what it keeps.  asked: is given what its
    code asks.  elsewhere: is told of another kind of device.
    """
    set_mode(model, training)
    followed: list[dict[str, Any]] = []
    functions = taught_functions(model, taught)
    held = held or HeldState(model)
    while True:
        tracer = Tracer(leaves, example, copies)
        tracer.told_dtypes = told
        tracer.gradients_of_inputs = gradients == "of inputs"
        tracer.devices.elsewhere, tracer.code = elsewhere, held.functions
        with (
            held.restored(plain=False, forget=True),
            noticed_regions(device_of(model).type, dict[str, None]()),  # what regions ask for is known inside
            torch.set_grad_enabled(gradients != "off"),
            ignore_fx_wraps(),
            patched_for_tracing(tracer),
            kept_calls(tracer, functions),
            followed_types(held.functions(), tracer.type_of),
            refused_ids(lambda x: issubclass(type(x), fx.Proxy), held.functions()),
            unmoved_modules(lambda proxy: proxy.tracer.decisions.structure(proxy)),  # type: ignore[attr-defined]
            shadowed_numbers(followed, traced_sizes(tracer)),
        ):
            try:
                graph = tracer.trace(model)
                if untold := tracer.dtypes_for_nothing() - told:
                    told |= untold
                    continue
                if changed is not None:
                    changed.update(dict.fromkeys(held.changed()))
                if asked is not None:
                    asked.gradients.update(tracer.gradient_questions)
                    asked.devices.update(tracer.devices.lines)
                    asked.tries = tracer.tries
                    asked.tracing.update(tracer.proxy_questions)
                    asked.dtypes |= tracer.asks_weights_dtype()
                return graph
            except AsksForNumber as number:
                followed.append(number.namespace)


def _refuse_writes(graph: fx.Graph, model: nn.Module) -> None:
    """Refuse `bias[a:b].zero_()`, which acts through memory: torch.export turns such writes into values."""
    for node in hidden_writes(graph, model):
        if node.target is not _ASSIGNED:
            raise NotImplementedError(f"{node.name} at {node.meta.get('where')} writes in place")


@contextlib.contextmanager
def ignore_fx_wraps() -> Iterator[None]:
    """Trace through what libraries `torch.fx.wrap`: a wrapped function hides weights and sizes."""
    wrapped = _symbolic_trace._wrapped_fns_to_patch
    hidden = dict(wrapped)
    wrapped.clear()
    try:
        yield
    finally:
        wrapped.update(hidden)
