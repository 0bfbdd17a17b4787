"""Prove calls of an instance with one more switch on, each by a capture of the original in such a call."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.analyze import AnalysisOptions, analyzed
from fxprune.certify.certificate import same_function
from fxprune.compiler.native.fingerprint import TOLERANCE
from fxprune.compiler.native.same_plan import by_same_plan
from fxprune.graph.example import Example, seeded_noise
from fxprune.graph.tensors import on_meta
from fxprune.result.pruned_module import PrunedModule

__all__ = ["proved_calls"]

_MOST = 8  # switches that are tried, each by a capture


def proved_calls(
    model: nn.Module, analysis: Analysis, instance: nn.Module, pruned: PrunedModule
) -> Iterator[Example]:
    """Yield calls with a switch on, beside the captured one, in which an instance equals its pruned graph.

    What such a call returns (hidden states, maps) may shrink as the plan says.
    """
    if on_meta(model):
        return
    example = analysis.captured.example
    for name in [*_switches(type(model), example)][:_MOST]:
        other = replace(example, kwargs={**example.kwargs, name: True})
        for outputs in (analysis.outputs, "prune"):
            options = replace(AnalysisOptions.of(analysis), outputs=outputs)
            try:
                graph = by_same_plan(model, analyzed(model, other, options), pruned)
                noise = seeded_noise(other, model)
                noise = noise.with_batch(2) if pruned.record.dynamic else noise
                if same_function(graph, instance, noise) <= TOLERANCE:
                    yield noise
                    break
            except Exception:  # a call that the model does not take, or that no graph holds by this plan
                continue


def _switches(cls: type[nn.Module], example: Example) -> Iterator[str]:
    """Name the parameters of a class's `forward` that are off by default, and that an example leaves so."""
    for name, p in [*inspect.signature(cls.forward).parameters.items()][1 + len(example.args) :]:
        optional = p.default is None and "bool" in str(p.annotation)
        if (p.default is False or optional) and name not in example.kwargs:
            yield name
