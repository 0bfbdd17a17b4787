"""What code asks beside its arguments: are gradients recorded, what did the last call leave, chance.

A graph answers as the traced call did.  Where another answer makes another graph, the capture is refused.
"""

from __future__ import annotations

import contextlib
import pickle
import random
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from fxprune.capture.clocks import another_time
from fxprune.capture.draws import drawn_at_ends
from fxprune.capture.held_state import HeldState
from fxprune.errors import CaptureError
from fxprune.graph.code_names import attribute_of, names_of
from fxprune.graph.copies import own_buffers, structural_copy
from fxprune.graph.example import Example
from fxprune.graph.nests import PLAIN
from fxprune.graph.tensors import cuda_devices_of

__all__ = [
    *("GRADIENTS", "OTHER_DRAWS", "DependsOnCall", "Gradients", "after_a_call", "asks_for_compilation"),
    *("noticed_draws", "other_second_call", "other_without_gradients", "refuse_difference"),
]

# How gradients are recorded while code runs.
Gradients = Literal["recorded", "off", "of inputs"]
GRADIENTS: tuple[Gradients, ...] = ("recorded", "off", "of inputs")


class DependsOnCall(CaptureError):
    """No capture holds the model: what it computes depends on more than its arguments."""


_COMPILING = {"is_compiling", "is_exporting", "is_dynamo_compiling", "is_export"}
_TRACING = {"is_fx_tracing", "is_fx_symbolic_tracing"}


def asks_for_compilation(functions: Iterable[types.FunctionType], compiling: bool = True) -> str | None:
    """Return where the first of some functions stands that asks whether it is traced, or compiled."""
    names = _TRACING | (_COMPILING if compiling else set())
    asking = (f.__code__ for f in functions if not names.isdisjoint(names_of(f.__code__)))
    return next((f"{code.co_filename}:{code.co_firstlineno}" for code in asking), None)


@contextlib.contextmanager
def after_a_call(model: nn.Module, example: Example) -> Iterator[tuple[list[str], bool]]:
    """Give a model the numbers, flags and words that one call leaves.

    Yields the names of all that the call changed, and whether numbers are among it.  A model that can't be
    called here has none.
    """
    called = structural_copy(model, own_buffers)
    held = HeldState(called)
    drawn = torch.random.fork_rng(devices=cuda_devices_of(model))  # what the call draws is nobody's
    with held.restored(plain=False):
        with drawn, contextlib.suppress(Exception), torch.no_grad():  # whatever user code raises
            given = example.map(Tensor.clone)
            called(*given.args, **given.kwargs)
        changed, plain = held.changed(), held.plain_changes()
    modules = dict(model.named_modules())
    try:
        for path, name in plain:
            setattr(modules[path], name, vars(called.get_submodule(path))[name])
        yield changed, bool(plain)
    finally:
        for (path, name), before in plain.items():
            setattr(modules[path], name, before)


@contextlib.contextmanager
def noticed_draws(
    model: nn.Module, called: Callable[[], Iterable[types.FunctionType]]
) -> Iterator[Callable[[], list[AbstractContextManager[None]]]]:
    """Yield in which contexts code that asks for chance may compute something else.

    Its numbers are in no graph.  Python's and NumPy's generators are asked, the global ones or those that
    modules hold; of clocks, and of generators that code makes as it runs, any of the functions that a call
    may run (`called`) names one.
    """
    before = _generators(model)

    def chances() -> list[AbstractContextManager[None]]:
        drawn = _generators(model) != before
        if not drawn and not any(map(_names_chance, called())):
            return []
        return [another_time(called()), *(drawn_at_ends(called()) if drawn else ())]

    yield chances


# What gives another number in each call, and leaves no trace of it.
_CHANCE = {
    *("time", "monotonic", "perf_counter", "process_time", "thread_time", "now", "utcnow", "today"),
    *("time_ns", "monotonic_ns", "perf_counter_ns", "process_time_ns", "thread_time_ns"),
    *("urandom", "getrandom", "uuid1", "uuid4", "token_bytes", "token_hex", "randbits", "randbelow"),
    *("Random", "SystemRandom", "default_rng", "RandomState", "SeedSequence", "PCG64", "MT19937"),
}


def _names_chance(function: types.FunctionType) -> bool:
    """Does a function name a clock or a maker of generators, under a name of its own as well?"""
    names = names_of(function.__code__)
    if not _CHANCE.isdisjoint(names):
        return True
    space: dict[str, Any] = function.__globals__
    return any(attribute_of(space.get(name), "__name__") in _CHANCE for name in names)


_NO_OWNERS = frozenset({*PLAIN, dict, OrderedDict, set, list, tuple})  # what modules hold dozens of


def _generators(model: nn.Module) -> bytes:
    """Write down the states of the generators that code can draw from."""
    numpy = sys.modules.get("numpy")
    values = (value for m in model.modules() for value in vars(m).values() if type(value) not in _NO_OWNERS)
    held = [getattr(value, "__self__", value) for value in values]
    known = [random.getstate(), *([numpy.random.get_state()] if numpy else [])]
    known += [value.getstate() for value in held if isinstance(value, random.Random)]
    if numpy:
        known += [v.get_state() for v in held if isinstance(v, numpy.random.RandomState)]
        known += [v.bit_generator.state for v in held if isinstance(v, numpy.random.Generator)]
    return pickle.dumps(known)


OTHER_DRAWS = (
    "it computes with numbers that Python's or NumPy's random generators give, or a clock, which a graph "
    "would hold as they were once: draw them by torch.rand, give them as an argument, or prune a submodule "
    "without that code"
)


def other_second_call(changed: Iterable[str]) -> str:
    """Explain that a call changes what the next one computes."""
    return (
        f"its second call computes something else than its first, since its code changes "
        f"{', '.join(changed)}: call the model once before you prune it if that settles it, or prune a "
        f"submodule without that code"
    )


def other_without_gradients(lines: Iterable[str]) -> str:
    """Explain that the code looks whether gradients are recorded."""
    return (
        f"it computes something else where gradients are recorded (of weights or of inputs) than where "
        f"they are not, as its code asks at {', '.join(lines)}: decide it when the model is built, or prune "
        f"a submodule without that code"
    )


def refuse_difference(graph: fx.Graph, other: fx.Graph, why: str) -> None:
    """Raise DependsOnCall if another answer made another graph.

    Graphs of two traces of the same code are spelled alike.
    """
    if str(graph) != str(other):
        raise DependsOnCall(why)
