"""Figures of two models beside each other: multiply-accumulates, and seconds, taking turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from fxprune.graph.copies import structural_copy
from fxprune.graph.example import Example
from fxprune.graph.modes import in_eval_mode
from fxprune.graph.values import bound_arguments
from fxprune.result.measure import counting, taking_turns

__all__ = ["latencies", "macs_by_node"]


def macs_by_node(module: fx.GraphModule, example: Example) -> dict[str, float]:
    """Count the multiply-accumulates of each call of a graph, by torch's own counter."""
    module = _without_gradients(module)
    with torch.no_grad(), counting() as counter:
        interpreter = _Counting(module, counter)
        interpreter.run(*bound_arguments(module, example))
    return interpreter.macs


class _Counting(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module)
        self.counter = counter
        self.macs: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> object:
        before = self.counter.get_total_flops()
        value = super().run_node(n)
        self.macs[n.name] = (self.counter.get_total_flops() - before) / 2
        return value


def _without_gradients(module: fx.GraphModule) -> fx.GraphModule:
    """Copy a module on the same tensors, with no gradients, which the counter can't stand."""
    copied = structural_copy(module)
    for owner in copied.modules():
        for name, p in owner._parameters.items():
            owner._parameters[name] = p if p is None else nn.Parameter(p.detach(), requires_grad=False)
    assert isinstance(copied, fx.GraphModule)
    return copied.eval()


def latencies(
    models: Sequence[nn.Module],
    example: Example,
    *,
    runs: int = 11,
    warmup: int = 2,
    progress: Callable[[int], object] = lambda run: None,
) -> list[float]:
    """Measure the median seconds of a call of each model in eval mode, on the same input, taking turns."""
    with in_eval_mode(*models), torch.inference_mode():
        taken = taking_turns(models, example, runs=runs, warmup=warmup, progress=progress)
    return [statistics.median(seconds) for seconds in taken]
