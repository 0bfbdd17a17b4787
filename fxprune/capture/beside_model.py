"""A graph beside the model that it was captured of: both are run, and have to give the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx, nn

from fxprune.capture.call_state import DependsOnCall, other_second_call
from fxprune.capture.held_state import HeldState
from fxprune.capture.modes.follow import set_mode
from fxprune.graph.copies import own_buffers, structural_copy
from fxprune.graph.example import Example, seeded_noise
from fxprune.graph.tensors import cuda_devices_of, floats_of, on_meta, seed_anew
from fxprune.graph.values import called_with

ADDED = ("_traced_", "_function_")  # how modules are named that captures add to a root

__all__ = [
    "CopyToRun",
    "alike",
    "computes_another",
    "gives_the_same",
    "refuse_compiled",
    "refuse_history",
]


def refuse_history(model: nn.Module, graph: fx.GraphModule, example: Example, changed: Iterable[str]) -> None:
    """Raise DependsOnCall if what a model computes follows its last call, and its graph's does not.

    changed: what a call of it changes.  A model that can't be called here has no history.
    """
    changed = list(changed)
    if not changed or on_meta(model):
        return
    first = seeded_noise(example, model)
    try:
        before, after = (_later(model, first, calls) for calls in (1, 2))
    except Exception:  # whatever the model's code raises for noise
        return
    if alike(before, after):
        return
    with contextlib.suppress(Exception):
        if alike(_later(graph, first, 2), after):
            return
    raise DependsOnCall(other_second_call(changed))


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
        if computes_another(model, graph, noise, training):
            raise DependsOnCall(
                f"the code at {where} asks whether it is compiled or traced, and computes something else "
                f"where a capture tells it so: prune it by another capture=, or a submodule without that code"
            )


def computes_another(model: nn.Module, graph: nn.Module, noise: Example, training: bool) -> bool:
    """Does a graph compute something else than its model: in float64, or else in their own precision?"""
    doubled = noise.map(lambda t: t.double() if t.is_floating_point() else t)
    tries = ((doubled, _doubled), (noise, own_buffers))  # in float64 nothing hides behind rounding
    found = (_is_another(model, graph, given, tensor, training) for given, tensor in tries)
    return next((another for another in found if another is not None), False)


def _is_another(
    model: nn.Module,
    graph: nn.Module,
    given: Example,
    tensor: Callable[[Tensor], Tensor],
    training: bool,
) -> bool | None:
    """Does a graph compute something else than its model, which draws nothing?  None: one of them raises."""
    try:
        wanted, again = (_later(model, given, 1, seed, tensor, training) for seed in (0, 1))
        got = _later(graph, given, 1, 0, tensor, training)
    except Exception:  # whatever code raises for noise, or for this precision
        return None
    return alike(wanted, again) and not alike(wanted, got, rounding=1e5)


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
        wanted, again = (_later(model, given, 1, seed) for seed in (0, 1))
        return alike(wanted, again) and alike(wanted, _later(other, given, 1))
    except Exception:  # whatever the model's code raises for noise
        return False


def _later(
    module: nn.Module,
    first: Example,
    calls: int,
    seed: int = 0,
    tensor: Callable[[Tensor], Tensor] = own_buffers,
    training: bool = False,
) -> list[Tensor]:
    """Return what a copy gives for the last input: at once (calls=1), or after a call with the first (2)."""
    last = first.map(lambda t: t.flip(*range(t.ndim)) if t.is_floating_point() else t)
    return CopyToRun(module, tensor, training)(*[first, last][-calls:], seed=seed)


class CopyToRun:
    """A copy of a model, or of a graph, that is called on noise: it leaves no trace."""

    def __init__(
        self,
        module: nn.Module,
        tensor: Callable[[Tensor], Tensor] = own_buffers,
        training: bool = False,
    ) -> None:
        self.module = module
        self._called = structural_copy(module, tensor)
        set_mode(self._called, training)
        if not isinstance(module, fx.GraphModule):
            for name in [name for name in self._called._modules if name.startswith(ADDED)]:
                del self._called._modules[name]  # the capture's own: a root's code may call its children
        self._devices, self._held = cuda_devices_of(module), HeldState(module)

    def __call__(self, *calls: Example, seed: int = 0) -> list[Tensor]:
        """Call it on each in turn, and return the last call's outputs."""
        drawn = torch.random.fork_rng(devices=self._devices)
        with self._held.restored(forget=True), drawn, torch.no_grad():
            for given in calls:
                seed_anew(self._devices, seed)
                outputs = floats_of(called_with(self._called, given.map(Tensor.clone)))
        return outputs


def alike(a: list[Tensor], b: list[Tensor], rounding: float = 100) -> bool:
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
