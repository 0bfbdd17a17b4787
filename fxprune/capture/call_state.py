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
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from fxprune.capture.held_state import HeldState
from fxprune.errors import CaptureError
from fxprune.graph.code_names import attribute_of, names_of
from fxprune.graph.copies import own_buffers, structural_copy
from fxprune.graph.example import Example, seeded_noise
from fxprune.graph.nests import PLAIN
from fxprune.graph.tensors import cuda_devices_of, floats_of, on_meta
from fxprune.graph.values import called_with

__all__ = [
    *("GRADIENTS", "Gradients", "asks_for_compilation", "refuse_compiled"),
    *("DependsOnCall", "after_a_call", "gives_the_same", "other_second_call"),
    *("OTHER_DRAWS", "noticed_draws", "other_without_gradients", "refuse_difference", "refuse_history"),
    "refuse_other_values",
]

# How gradients are recorded while code runs.
Gradients = Literal["recorded", "off", "of inputs"]
GRADIENTS: tuple[Gradients, ...] = ("recorded", "off", "of inputs")


class DependsOnCall(CaptureError):
    """No capture holds the model: what it computes depends on more than its arguments."""


def refuse_history(model: nn.Module, graph: fx.GraphModule, example: Example, changed: Iterable[str]) -> None:
    """Raise DependsOnCall if what a model computes follows its last call, and its graph's does not.

    changed: what a call of it changes.  A model that can't be called here has no history.
    """
    changed = list(changed)
    if not changed or on_meta(model):
        return
    first = seeded_noise(example, model)
    try:
        before, after = (_later(model, example, first, calls) for calls in (1, 2))
    except Exception:  # whatever the model's code raises for noise
        return
    if _alike(before, after):
        return
    with contextlib.suppress(Exception):
        if _alike(_later(graph, example, first, 2), after):
            return
    raise DependsOnCall(other_second_call(changed))


def refuse_other_values(model: nn.Module, graph: fx.GraphModule, example: Example) -> None:
    """Raise CaptureError if a graph does not compute what its model does for the example's shapes.

    Whatever the tracing was told wrong shows here.  A model that can't be called here, or that draws, is not
    compared.
    """
    if on_meta(model):
        return
    for shape in (example.with_batch(1), example) if example.batch else (example,):
        noise = seeded_noise(shape, model)
        try:
            wanted, got = (_later(m, shape, noise, 1) for m in (model, graph))
            if _alike(wanted, got, rounding=1e4):
                return
            break
        except Exception:  # whatever the model's code raises for noise, or for one sample
            continue
    else:
        return
    doubled = noise.map(lambda t: t.double() if t.is_floating_point() else t)
    tries = ((doubled, _doubled), (noise, own_buffers))  # in float64 nothing hides behind rounding
    found = (_is_another(model, graph, shape, given, tensor, False) for given, tensor in tries)
    if next((another for another in found if another is not None), False):
        raise CaptureError("the graph computes something else than the model's code does when it is called")


_COMPILING = {"is_compiling", "is_exporting", "is_dynamo_compiling", "is_export"}
_TRACING = {"is_fx_tracing", "is_fx_symbolic_tracing"}


def asks_for_compilation(functions: Iterable[types.FunctionType], compiling: bool = True) -> str | None:
    """Return where the first of some functions stands that asks whether it is traced, or compiled."""
    names = _TRACING | (_COMPILING if compiling else set())
    asking = (f.__code__ for f in functions if not names.isdisjoint(names_of(f.__code__)))
    return next((f"{code.co_filename}:{code.co_firstlineno}" for code in asking), None)


def refuse_compiled(
    model: nn.Module, graph: fx.GraphModule, example: Example, where: str, *, trains: bool = True
) -> None:
    """Raise DependsOnCall if what a graph computes is not what its model does when it is called.

    While a capture looks, code that asks is told that it is compiled, or traced.  Both run in float64, where
    rounding hides no other computation, or in the model's own precision where they don't take that.  A model
    that can't be called here, or that draws, is not compared.

    trains: does the graph hold for train mode as well?
    """
    if on_meta(model):
        return
    noise = seeded_noise(example, model)
    doubled = noise.map(lambda t: t.double() if t.is_floating_point() else t)
    for training in (False, True) if trains else (False,):
        tries = (
            _is_another(model, graph, example, given, tensor, training)
            for given, tensor in ((doubled, _doubled), (noise, own_buffers))
        )
        if next((found for found in tries if found is not None), False):
            raise DependsOnCall(
                f"the code at {where} asks whether it is compiled or traced, and computes something else "
                f"where a capture tells it so: prune it by another capture=, or a submodule without that code"
            )


def _is_another(
    model: nn.Module,
    graph: nn.Module,
    example: Example,
    given: Example,
    tensor: Callable[[Tensor], Tensor],
    training: bool,
) -> bool | None:
    """Does a graph compute something else than its model, which draws nothing?  None: one of them raises."""
    try:
        wanted, again = (_later(model, example, given, 1, seed, tensor, training) for seed in (0, 1))
        got = _later(graph, example, given, 1, 0, tensor, training)
    except Exception:  # whatever code raises for noise, or for this precision
        return None
    return _alike(wanted, again) and not _alike(wanted, got, rounding=1e5)


def _doubled(tensor: Tensor) -> Tensor:
    made = tensor.detach().clone()
    made = made.double() if made.is_floating_point() else made
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def gives_the_same(model: nn.Module, other: nn.Module, example: Example) -> bool:
    """Do two models compute the same of noise?  Not where one can't be called, or draws."""
    if on_meta(model):
        return False
    given = seeded_noise(example, model)
    try:
        wanted, again = (_later(model, example, given, 1, seed) for seed in (0, 1))
        return _alike(wanted, again) and _alike(wanted, _later(other, example, given, 1))
    except Exception:  # whatever the model's code raises for noise
        return False


def _later(
    module: nn.Module,
    example: Example,
    first: Example,
    calls: int,
    seed: int = 0,
    tensor: Callable[[Tensor], Tensor] = own_buffers,
    training: bool = False,
) -> list[Tensor]:
    """Return what a copy gives for the last input: at once (calls=1), or after a call with the first (2)."""
    called = structural_copy(module, tensor).train(training)
    drawn = torch.random.fork_rng(devices=cuda_devices_of(module))
    last = first.map(lambda t: t.flip(*range(t.ndim)) if t.is_floating_point() else t)
    with HeldState(module).restored(), drawn, torch.no_grad():
        for given in [first, last][-calls:]:
            torch.manual_seed(seed)
            given = given.map(Tensor.clone)
            outputs = floats_of(called_with(called, given))
    return outputs


def _alike(a: list[Tensor], b: list[Tensor], rounding: float = 100) -> bool:
    """Are they equal up to so many units of rounding?"""
    return len(a) == len(b) and all(
        x.shape == y.shape
        and torch.allclose(
            *(x, y),
            rtol=0,
            atol=rounding * torch.finfo(x.dtype).eps * float(y.abs().nan_to_num().max()) if y.numel() else 0,
            equal_nan=True,
        )
        for x, y in zip(a, b, strict=True)
    )


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
) -> Iterator[Callable[[], bool]]:
    """Yield whether Python's or NumPy's generators were asked since: their numbers are in no graph.

    The global ones, and those that modules hold.  Of clocks, and of generators that code makes as it runs,
    whether any of the functions that a call may run (`called`) names one.
    """
    before = _generators(model)
    yield lambda: _generators(model) != before or any(map(_names_chance, called()))


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
