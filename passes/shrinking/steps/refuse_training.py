"""Where a graph doesn't hold a derivative, a result refuses to be trained."""

from __future__ import annotations

from fxprune.graph.own_nodes import ForwardOnly
from fxprune.passes.shrinking.steps.draft import Draft

__all__ = ["refuse_training"]


def refuse_training(draft: Draft) -> None:
    """Let the backward pass raise where it would follow another derivative than the model's.

    Needs: a root of the draft's own.  Guarantees: the same values.  The analysed graph, whose derivatives
    score channels, is not changed.
    """
    for path, module in list(draft.root.named_modules()):
        if isinstance(module, ForwardOnly):
            refusing = ForwardOnly(module.function)
            refusing.armed = True
            draft.root.set_submodule(path, refusing)
