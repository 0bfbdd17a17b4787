"""Prove calls of an instance with one more switch on, each by a capture of the original in such a call."""

from __future__ import annotations

import contextlib
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

__all__ = ["OtherCall", "other_calls", "proves"]

_MOST = 8  # switches that are tried, each by a capture
OtherCall = tuple[PrunedModule, Example]  # the pruned graph of such a call, and noise for it


def other_calls(model: nn.Module, analysis: Analysis, pruned: PrunedModule) -> list[OtherCall]:
    """Prune the graphs of calls with a switch on beside the captured one, by the same plan.

    What such a call returns (hidden states, maps) may shrink as the plan says.
    """
    if on_meta(model):
        return []
    example, found = analysis.captured.example, list[OtherCall]()
    options = replace(AnalysisOptions.of(analysis), outputs="prune")
    for name in [*_switches(type(model), example)][:_MOST]:
        other = replace(example, kwargs={**example.kwargs, name: True})
        noise = seeded_noise(other, model)
        noise = noise.with_batch(2) if pruned.record.dynamic else noise
        with contextlib.suppress(Exception):  # what the model does not take, or no graph holds by this plan
            found.append((by_same_plan(model, analyzed(model, other, options), pruned), noise))
    return found


def proves(call: OtherCall, instance: nn.Module) -> bool:
    """Return whether an instance computes in a call what the pruned graph of that does."""
    graph, noise = call
    try:
        return same_function(graph, instance, noise) <= TOLERANCE
    except Exception:  # whatever its code does with sizes that it did not expect
        return False


def _switches(cls: type[nn.Module], example: Example) -> Iterator[str]:
    """Name the parameters of a class's `forward` that are off by default, and that an example leaves so."""
    for name, p in [*inspect.signature(cls.forward).parameters.items()][1 + len(example.args) :]:
        optional = p.default is None and "bool" in str(p.annotation)
        if (p.default is False or optional) and name not in example.kwargs:
            yield name
