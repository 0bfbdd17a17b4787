"""What every test of a pruned model asks: is it exact, is it a slice of the original, does it run?"""

from __future__ import annotations

from typing import Any

import torch
from helpers import tensors_of
from torch import fx, nn

import fxprune
from fxprune.certify.certificate import certified
from fxprune.certify.comparison import Comparison
from fxprune.certify.mutants import survivors, without_a_guard
from fxprune.compiler import prune_analyzed
from fxprune.graph.example import Example, seeded_noise
from fxprune.result.selection import Selection

TOLERANCE = 1e-8


def assert_exact(model: nn.Module, pruned: fx.GraphModule, *batches: int) -> None:
    """The certificate, the contract on weights, and a run at each batch size."""
    assert float(fxprune.verify(model, pruned)) <= TOLERANCE
    assert_slices(model, pruned)
    for batch in batches:
        assert_runs(pruned, batch)


def certified_at(
    ratios: tuple[float, ...], model: nn.Module, inputs: Any, capture: str, **kwargs: Any
) -> list[fx.GraphModule]:
    """Prune by each ratio from one capture; every result is held against the masked original.

    The public calls capture anew each time, `verify` as well, which takes most of the time by export.
    """
    analysis = fxprune.analyze(model, example_inputs=inputs, example_kwargs=kwargs or None, capture=capture)
    results = [prune_analyzed(model, analysis, ratio) for ratio in ratios]
    assert all(certificate(model, pruned, analysis) <= TOLERANCE for pruned in results)
    return results


def assert_slices(model: nn.Module, pruned: fx.GraphModule) -> None:
    """Every tensor of the result is the index-select that the plan says, under its own name."""
    kept = fxprune.plan_of(pruned).kept
    state = model.state_dict()
    assert set(pruned.state_dict()) <= set(state)
    assert set(kept) <= set(state)
    for name, tensor in pruned.state_dict().items():
        expected = state[name]
        for dim, indices in enumerate(kept.get(name, ())):
            if indices is not None:
                assert torch.equal(indices, indices.unique())
                expected = expected.index_select(dim, indices)
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected), name


def assert_runs(pruned: fx.GraphModule, batch: int) -> None:
    """The result takes `batch` samples, and returns as many."""
    shapes = pruned.record.example
    inputs = shapes.with_batch(batch).map(lambda t: torch.randn(t.shape).to(t.dtype))
    with torch.no_grad():
        outputs = tensors_of(pruned(*inputs.args, **inputs.kwargs))
    assert outputs
    for t in outputs:
        assert batch in t.shape[:2]
        assert t.isfinite().all()


def groups_of(analysis: fxprune.Analysis, model: nn.Module) -> set[tuple[frozenset[str], int, bool]]:
    """Groups as both captures must agree on them: the model's own sites, the size, live or frozen."""
    own = {n for n, _ in (*model.named_parameters(), *model.named_buffers())}
    found = set()
    for group in analysis.groups:
        sites = frozenset(str(site) for site in group.sites if site.name in own)
        if sites:
            found.add((sites, group.size, group.frozen is None))
    return found


# ---------------------------------------------------------------- with an analysis at hand


def certificate(
    model: nn.Module, pruned: fx.GraphModule, analysis: fxprune.Analysis, batch: int = 3
) -> float:
    """`fxprune.verify` without a capture of its own."""
    return float(certified(*_comparison(model, pruned, analysis, batch)))


def assert_certified(
    model: nn.Module, pruned: fx.GraphModule, analysis: fxprune.Analysis, batch: int = 3
) -> None:
    """The certificate holds for the result, and for no mutant of it."""
    comparison, example = _comparison(model, pruned, analysis, batch)
    assert certified(comparison, example).exact
    assert survivors(comparison) == []
    assert not without_a_guard(pruned, analysis)


def _comparison(
    model: nn.Module, pruned: fx.GraphModule, analysis: fxprune.Analysis, batch: int
) -> tuple[Comparison, Example]:
    record = pruned.record
    example = seeded_noise(record.example, model).with_batch(batch if record.dynamic else None)
    selection = Selection.from_plan(analysis, fxprune.plan_of(pruned))
    return Comparison(model, pruned, analysis, selection), example
