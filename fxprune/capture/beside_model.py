"""A graph beside the model that it was captured of: both are run, and have to give the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx, nn

from fxprune.capture.call_state import DependsOnCall, other_second_call
from fxprune.capture.held_state import HeldState
from fxprune.capture.sketches import Sketched
from fxprune.errors import CaptureError
from fxprune.graph.copies import own_buffers, structural_copy
from fxprune.graph.example import Example, seeded_noise
from fxprune.graph.tensors import cuda_devices_of, floats_of, on_meta, seed_anew
from fxprune.graph.values import called_with

ADDED = ("_traced_", "_function_")  # how modules are named that captures add to a root

__all__ = ["gives_the_same", "refuse_compiled", "refuse_history", "refuse_other_values"]


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

    Whatever the tracing was told wrong shows here.  Products are computed where their sketches differ, since
    the graph may spell them otherwise.  A model that can't be called here, or that draws, is not compared.
    """
    if on_meta(model):
        return
    for shape in (example.with_batch(1), example) if example.batch else (example,):
        noise = seeded_noise(shape, model)
        with contextlib.suppress(Exception), Sketched(model):  # whatever the model's code raises for noise
            if _alike(*_both(model, graph, shape, noise), rounding=1e4):
                return
        try:
            if _alike(*_both(model, graph, shape, noise), rounding=1e4):
                return
            break
        except Exception:  # for one sample, say
            continue
    else:
        return
    if _computes_another(model, graph, shape, noise, training=False):
        raise CaptureError("the graph computes something else than the model's code does when it is called")


def _both(
    model: nn.Module, graph: nn.Module, example: Example, noise: Example
) -> tuple[list[Tensor], list[Tensor]]:
    return _later(model, example, noise, 1), _later(graph, example, noise, 1)


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
    for training in (False, True) if trains else (False,):
        if _computes_another(model, graph, example, noise, training):
            raise DependsOnCall(
                f"the code at {where} asks whether it is compiled or traced, and computes something else "
                f"where a capture tells it so: prune it by another capture=, or a submodule without that code"
            )


def _computes_another(
    model: nn.Module, graph: nn.Module, example: Example, noise: Example, training: bool
) -> bool:
    """Does a graph compute something else than its model: in float64, or else in their own precision?"""
    doubled = noise.map(lambda t: t.double() if t.is_floating_point() else t)
    tries = ((doubled, _doubled), (noise, own_buffers))  # in float64 nothing hides behind rounding
    found = (_is_another(model, graph, example, given, tensor, training) for given, tensor in tries)
    return next((another for another in found if another is not None), False)


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
    if not isinstance(module, fx.GraphModule):
        for name in [name for name in called._modules if name.startswith(ADDED)]:
            del called._modules[name]  # the capture's own: code may go through the root's children one by one
    devices = cuda_devices_of(module)
    drawn = torch.random.fork_rng(devices=devices)
    last = first.map(lambda t: t.flip(*range(t.ndim)) if t.is_floating_point() else t)
    with HeldState(module).restored(forget=True), drawn, torch.no_grad():
        for given in [first, last][-calls:]:
            seed_anew(devices, seed)
            given = given.map(Tensor.clone)
            outputs = floats_of(called_with(called, given))
    return outputs


def _alike(a: list[Tensor], b: list[Tensor], rounding: float = 100) -> bool:
    """Are they equal up to so many units of rounding?"""
    return len(a) == len(b) and all(
        (x.shape, x.dtype) == (y.shape, y.dtype)
        and torch.allclose(x, y, rtol=0, atol=_tolerance(y, rounding), equal_nan=True)
        for x, y in zip(a, b, strict=True)
    )


def _tolerance(t: Tensor, rounding: float) -> float:
    """Return so many units of rounding at the largest number, and no more than a tenth of that."""
    finite = t[t.isfinite()].abs()
    return min(rounding * torch.finfo(t.dtype).eps, 0.1) * float(finite.max()) if finite.numel() else 0.0
