"""Map the names of a model's tensors and modules to those in its smaller sibling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import fx

__all__ = ["tensor_names"]


def tensor_names(
    module: fx.GraphModule, pairs: Sequence[tuple[fx.Node, fx.Node]]
) -> Iterator[tuple[str, str]]:
    """Yield the names of each weight that corresponding nodes read: (in the model, in the smaller one)."""
    for ours, theirs in pairs:
        if ours.op == "get_attr":
            yield str(ours.target), str(theirs.target)
        elif ours.op == "call_module":
            owner = module.get_submodule(str(ours.target))
            for name, _ in (*owner.named_parameters(), *owner.named_buffers()):
                yield f"{ours.target}.{name}", f"{theirs.target}.{name}"
