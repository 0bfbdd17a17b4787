"""Leave an attention's scale open again where it follows the input: `sdpa(q.mT, k.mT, v.mT)` over tokens."""

from __future__ import annotations

from torch import fx

from fxprune.passes.shrinking.steps.draft import Draft
from fxprune.rules.axes import atoms_of

__all__ = ["restore_scales"]


def restore_scales(draft: Draft) -> None:
    """Restore attention without a scale whose queries are as wide as the input is long.

    Needs: copies of attentions with `meta["default_scale"]`, as of `explicit_scale`.  Guarantees: those keep
    a number whose width is one of parameters, the only one that may shrink.
    """
    analysis = draft.analysis
    scaled = [node for node in draft.new_of if node.meta.get("default_scale")]
    if not scaled:
        return
    of_weights = {a for axes in analysis.weights.values() for axis in axes for a in atoms_of(axis)}
    for node in scaled:
        query = node.args[0] if node.args else node.kwargs["query"]
        assert isinstance(query, fx.Node)
        if of_weights.isdisjoint(atoms_of(analysis.axes[query][0][-1])):
            new = draft.new_of[node]
            new.kwargs = {k: v for k, v in new.kwargs.items() if k != "scale"}
