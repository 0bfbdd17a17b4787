"""The GraphModule that `prune` returns: its record, tied names and modes survive deepcopy and pickle.

`fx.GraphModule` rebuilds itself from its graph when it is copied, and drops what the graph does not name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from fxprune.graph.example import Example, seeded_noise
from fxprune.graph.tensors import holder

__all__ = ["PrunedModule", "analysis_options", "noise_for"]

ANALYSED = ("outputs", "split_qkv", "capture")  # how the original was analysed, as options of `analyze`


class PrunedModule(fx.GraphModule):
    """A rewritten model.

    meta["fxprune"] holds its record: the plan, how it was made, and `ties`, the second names of shared
    tensors (second name -> the name that the graph uses).
    """

    def restore(self, ties: dict[str, str], modes: dict[str, bool]) -> None:
        """Put back second names, and each module's own train or eval flag."""
        for second, first in ties.items():
            _tie(self, second, first)
        for path, module in self.named_modules():
            while path not in modes:  # a module that capture made is in the mode of what holds it
                path = path.rpartition(".")[0]
            module.training = modes[path]

    @property
    def modes(self) -> dict[str, bool]:
        return {path: module.training for path, module in self.named_modules()}

    def __deepcopy__(self, memo: dict[int, Any]) -> PrunedModule:
        twin: PrunedModule = super().__deepcopy__(memo)  # type: ignore[assignment]
        twin.restore(self.meta["fxprune"]["ties"], self.modes)
        return twin

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        rebuild, arguments, *_ = super().__reduce__()
        return _unpickled, (rebuild, arguments, self.meta, self.modes)


def analysis_options(pruned: fx.GraphModule) -> dict[str, Any]:
    """The options of `analyze` that the original was analysed with when it was pruned."""
    return {name: pruned.meta["fxprune"][name] for name in ANALYSED}


def noise_for(pruned: fx.GraphModule, model: nn.Module, batch: int) -> Example:
    """Noise of the shape that the model was pruned with, in batches of `batch` where any size will do."""
    record = pruned.meta["fxprune"]
    return seeded_noise(record["example"].with_batch(batch if record["dynamic"] else None), model)


def _unpickled(
    rebuild: Callable[..., fx.GraphModule],
    arguments: tuple[Any, ...],
    meta: dict[str, Any],
    modes: dict[str, bool],
) -> PrunedModule:
    plain = rebuild(*arguments)
    module = PrunedModule(plain, plain.graph, type(plain).__name__)
    module.meta = meta
    module.restore(meta["fxprune"]["ties"], modes)
    return module


def _tie(root: nn.Module, second: str, first: str) -> None:
    path, _, leaf = first.rpartition(".")
    owner = root.get_submodule(path)
    new_path, _, new_leaf = second.rpartition(".")
    place = holder(root, new_path)
    if leaf in owner._parameters:
        place.register_parameter(new_leaf, owner._parameters[leaf])
    else:
        persistent = leaf not in owner._non_persistent_buffers_set
        place.register_buffer(new_leaf, owner._buffers[leaf], persistent=persistent)
