"""Test a certificate: spoil the result in ways that it must find."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.analysis.analysis import Analysis
from fxprune.certify.comparison import Comparison, refuse_missing_guards
from fxprune.errors import CertificateError
from fxprune.graph.copies import structural_copy
from fxprune.graph.own_nodes import is_guard
from fxprune.graph.tensors import is_float, named_tensors, tensor_at
from fxprune.result.pruned_module import record_of

__all__ = ["survivors", "without_a_guard"]

TOLERANCE = 1e-8


def survivors(comparison: Comparison) -> list[str]:
    """Return the mutants that pass for the right result, in words.

    Two weights are spoilt, a few elements of the one, another slice for the other: each must show in the
    outputs (unless the original's don't depend on it), and both where weights are held against the plan.

    Args:
        comparison: of a result that is exact.
    """
    names = _cut_weights(comparison)
    if not names or comparison.first is None:
        return []
    spoilt = {
        f"{names[len(names) // 2]} spoilt": (names[len(names) // 2], _elements_added),
        f"another slice of {names[len(names) // 3]}": (names[len(names) // 3], _another_slice),
    }
    found = []
    with contextlib.ExitStack() as together:
        for words, (name, change) in spoilt.items():
            with _holding(comparison, name, change(comparison, name)):
                if not _shows(comparison):
                    found.append(words)
            together.enter_context(_holding(comparison, name, change(comparison, name)))
        if {*comparison.weights.changed(comparison.pruned)} != _names_of(comparison, spoilt.values()):
            found.append(f"weights that are no slices: {', '.join(spoilt)}")
    return found


def _names_of(comparison: Comparison, spoilt: Iterable[tuple[str, Any]]) -> set[str]:
    """Return every name under which a spoilt tensor is held against the plan."""
    tensors = {id(tensor_at(comparison.pruned, name)) for name, _ in spoilt}
    known = comparison.weights.originals
    return {name for name, t in named_tensors(comparison.pruned) if id(t) in tensors and name in known}


def without_a_guard(pruned: fx.GraphModule, analysis: Analysis) -> bool:
    """Return whether a result could lose a guard of its capture without the certificate noticing."""
    guards = [i for i, node in enumerate(pruned.graph.nodes) if is_guard(node) and not node.users]
    if not guards:
        return False
    mutant = structural_copy(pruned)
    assert isinstance(mutant, fx.GraphModule)
    mutant.graph.erase_node([*mutant.graph.nodes][guards[len(guards) // 2]])
    try:
        refuse_missing_guards(mutant, analysis, record_of(pruned).example)
    except CertificateError:
        return False
    return True


def _shows(comparison: Comparison) -> bool:
    """Return whether outputs depend on the weights that the result has now, if they can."""
    assert comparison.first is not None
    example, _ = comparison.first
    look = comparison.look(example)
    return look.error > TOLERANCE or comparison.effect(example) <= TOLERANCE


@contextlib.contextmanager
def _holding(comparison: Comparison, name: str, value: Tensor) -> Iterator[None]:
    """Put another tensor under a name of the result for a while."""
    stored = tensor_at(comparison.pruned, name)
    own = stored.data
    stored.data = value
    try:
        yield
    finally:
        stored.data = own


def _cut_weights(comparison: Comparison) -> list[str]:
    """Return the parameters that lost elements, and have several left."""
    kept, originals = comparison.weights.kept, comparison.weights.originals
    return [
        name
        for name, p in comparison.pruned.named_parameters()
        if any(k is not None for k in kept.get(name, ()))
        and p.numel() > 1
        and is_float(p)
        and p.numel() < originals[name].numel()
    ]


def _elements_added(comparison: Comparison, name: str) -> Tensor:
    """Return a weight with its largest magnitude added to every seventh element."""
    value = tensor_at(comparison.pruned, name).detach().clone(memory_format=torch.contiguous_format)
    value.view(-1)[::7] += value.abs().max().clamp_min(1e-6)
    return value


def _another_slice(comparison: Comparison, name: str) -> Tensor:
    """Return a weight in which a removed slice of one dimension stands in the place of the last kept one."""
    weights = comparison.weights
    kept = list(weights.kept[name])
    full = weights.originals[name].detach()
    dim = next(d for d, k in enumerate(kept) if k is not None and len(k) < full.shape[d])
    positions = torch.as_tensor(kept[dim])
    removed = next(i for i in range(full.shape[dim]) if not bool((positions == i).any()))
    value = tensor_at(comparison.pruned, name).detach().clone()
    other = full.select(dim, removed)
    for d, k in enumerate(kept):
        if d != dim and k is not None:
            other = other.index_select(d - (d > dim), torch.as_tensor(k, device=full.device))
    value.select(dim, -1).copy_(other)
    return value
