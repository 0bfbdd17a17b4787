"""A graph that computes what its model does in eval mode alone refuses train mode, whoever runs it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import fx, nn

from fxprune.errors import TrainingError

__all__ = [
    "RefuseTrainMode",
    "drop_refusals",
    "refusals_in",
    "refuse_train_mode",
    "refusing_nothing",
    "refusing_paths",
]

NAME = "_refuse_train_mode"


class RefuseTrainMode(nn.Module):
    """A call that raises in train mode; in eval mode it does nothing, and tools that record a graph see none.

    It is a node, not a check of the root's `forward`: torch.export, torch.onnx and interpreters walk
    through the nodes of a GraphModule, and call no `forward` of its.
    """

    _is_impure = True  # torch.fx keeps the call, though nobody reads its result

    def __init__(self, why: Iterable[str]) -> None:
        super().__init__()
        self.why = tuple(why)

    def forward(self) -> None:
        if self.training:
            raise TrainingError(
                f"{'; '.join(self.why)}: train it in eval mode (model.eval()), by what it gives there, "
                f"or prune with form='module', which gives an instance that trains by its own code"
            )


def refuse_train_mode(module: fx.GraphModule, why: Iterable[str]) -> None:
    """Let a graph refuse train mode.

    why: what the model does there and the graph does not, in words; if there are none, nothing is changed.
    """
    refusal = RefuseTrainMode(why)
    if not refusal.why:
        return
    name = NAME
    while hasattr(module, name):
        name += "_"
    refusal.train(module.training)
    module.add_module(name, refusal)
    first: fx.Node = next(node for node in module.graph.nodes if node.op != "placeholder")
    with module.graph.inserting_before(first):
        module.graph.call_module(name)
    module.recompile()


def refusals_in(module: nn.Module) -> tuple[str, ...]:
    """List what graphs inside a module refuse train mode for, each once."""
    found = (why for m in module.modules() if isinstance(m, RefuseTrainMode) for why in m.why)
    return tuple(dict.fromkeys(found))


@contextlib.contextmanager
def refusing_nothing(root: nn.Module) -> Iterator[None]:
    """Run graphs in whichever mode, to see whether they run."""
    refusing = [m for m in root.modules() if isinstance(m, RefuseTrainMode)]
    modes = [m.training for m in refusing]
    try:
        for m in refusing:
            m.training = False
        yield
    finally:
        for m, mode in zip(refusing, modes, strict=True):
            m.training = mode


def refusing_paths(root: nn.Module) -> set[str]:
    """Return the paths of the modules that refuse train mode."""
    return {path for path, m in root.named_modules() if isinstance(m, RefuseTrainMode)}


def drop_refusals(graph: fx.Graph, root: nn.Module) -> None:
    """Erase the nodes that refuse train mode from a graph that calls modules of `root`."""
    refusing = refusing_paths(root)
    for node in [n for n in graph.nodes if n.op == "call_module" and n.target in refusing]:
        graph.erase_node(node)
