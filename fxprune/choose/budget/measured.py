"""Measure what a pruned model is left with, beside the original: parameters, MACs or time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import nn

from fxprune.analysis.analysis import Analysis
from fxprune.choose.budget.request import Budget, Latency
from fxprune.errors import BudgetError
from fxprune.graph.tensors import on_meta
from fxprune.result.measure import eval_copy, latency_ratio, macs_of, parameters_of
from fxprune.result.plan import Plan
from fxprune.result.pruned_module import noise_for, on_least_noise

__all__ = ["Rewriter", "idle_parameters", "share_left"]


class Rewriter(Protocol):
    """Builds what a plan gives of `model`, as far as a measure depends on it."""

    @property
    def model(self) -> nn.Module: ...

    def __call__(self, analysis: Analysis, plan: Plan, measure: str) -> nn.Module: ...


def idle_parameters(model: nn.Module, analysis: Analysis) -> list[nn.Parameter]:
    """Return the parameters that no graph has, and an instance keeps: those of train mode alone, say."""
    return [p for name, p in model.named_parameters() if name not in analysis.names]


def share_left(model: nn.Module, budget: Budget) -> Callable[[nn.Module], float]:
    """Return the share of the model's cost that a pruned model is left with, counted or timed on both.

    Raises:
        BudgetError: time is asked of a model without values.
    """
    if budget.measure in ("channels", "params"):
        return lambda pruned: parameters_of(pruned) / parameters_of(model)
    dense = eval_copy(model)
    if budget.measure == "macs":
        whole: list[float] = []  # counted once, when the example is known

        def counted(pruned: nn.Module) -> float:
            smaller = eval_copy(pruned)
            example, macs = on_least_noise(pruned, model, lambda example: macs_of(smaller, example))
            if not whole:
                whole.append(macs_of(dense, example))
            return macs / whole[0]

        return counted
    how = budget.target if isinstance(budget.target, Latency) else Latency()
    if on_meta(model):
        raise BudgetError("target='latency': a model on the meta device takes no time; use target='macs'")

    def timed(pruned: nn.Module) -> float:
        example = noise_for(pruned, model, how.batch)
        return latency_ratio(dense, eval_copy(pruned), example, threads=how.threads, rounds=how.rounds)

    return timed
