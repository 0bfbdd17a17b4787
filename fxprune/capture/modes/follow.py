"""Train and eval: how one graph follows the mode that the model's Python code branched on.

The model is captured once in eval mode and once in train mode, and the two are merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import fx, nn

from fxprune.capture.modes.merge import difference, merge_modes
from fxprune.capture.reached import reads_mode_outside_of_modules
from fxprune.graph.code_names import names_of
from fxprune.graph.modes import follows_mode, reads_mode
from fxprune.graph.refuse_train_mode import RefuseTrainMode, refusals_in
from fxprune.graph.writes import written_state
from fxprune.rules.modules import native

__all__ = ["OTHER_CODE", "TrainMode", "branches_on_mode", "follow_modes", "set_mode", "sets_mode"]


@dataclass(frozen=True)
class TrainMode:
    """What becomes of train mode in a graph that was captured in eval mode.

    followed: in train mode the graph computes what the model does, whether it keeps what that writes or not.
    lost: what the model does in train mode and the graph does not, in words for people.
    """

    followed: bool = True
    lost: tuple[str, ...] = ()


def set_mode(model: nn.Module, training: bool) -> None:
    """Switch modes through the modules' own `train`; batch norms stay in eval: they are kept as calls.

    Those that would train hold another word for it, so that code shows that puts them in eval on its way.
    """
    model.train(training)
    for module in model.modules():
        if isinstance(module, _ALWAYS_EVAL):
            trains = training and module.training and native(module) is not None
            module.training = _HELD_IN_EVAL if trains else False


_ALWAYS_EVAL = (nn.modules.batchnorm._NormBase, RefuseTrainMode)
_HELD_IN_EVAL: Any = 0
OTHER_CODE = "training runs other operations{}: the result runs in eval mode alone"
STAY = "train() leaves a {} in eval mode: the result runs in eval mode alone"
LEFT_OUT = "train mode writes to {}: the result runs in eval mode alone"


def follow_modes(
    graph: fx.Graph,
    trace_training: Callable[[], fx.Graph],
    root: nn.Module,
    kept: Callable[[], Iterable[str]] = tuple,
    functions: Callable[[], Iterable[FunctionType]] = tuple,
    *,
    branches: bool = False,
) -> TrainMode:
    """Make a graph that was captured in eval mode follow the mode, where train mode runs the same operations.

    `trace_training` captures the model in train mode; `kept` names the attributes that it alone sets.
    `functions` may run in a call, beside the modules' methods.  `branches`: what was captured is known to.
    """
    refused = refusals_in(root)  # by results that were pruned before, inside of this model
    stays = _in_other_mode(graph, root)
    if stays is not None:
        return TrainMode(False, (*refused, STAY.format(stays)))
    branches = branches or any(map(branches_on_mode, root.modules()))
    if not branches and not reads_mode_outside_of_modules(root, functions()):
        return TrainMode(lost=refused)
    left_out: set[str] = set()
    try:
        training = trace_training()
    except Exception as error:  # train mode may do what can't be captured; eval mode was
        followed, where = False, [error.module_path] if hasattr(error, "module_path") else []
    else:
        left_out |= written_state(training, root) - written_state(graph, root)
        where = difference(graph, training, root)
        followed = not where
    if followed:
        merge_modes(graph, training, root)
    left_out |= {*kept()}
    lost = [LEFT_OUT.format(", ".join(sorted(left_out)))] if left_out else []
    lost += [] if followed else [OTHER_CODE.format(_named(where, root))]
    return TrainMode(followed, tuple(dict.fromkeys([*refused, *lost])))


def _in_other_mode(graph: fx.Graph, root: nn.Module) -> str | None:
    """Name the class of a layer of the graph that the model's own `train` leaves in eval mode, if any.

    Raises:
        NotImplementedError: its `eval` leaves one in train mode.
    """
    parts = [*root.modules()]
    if all(getattr(type(m), name) is getattr(nn.Module, name) for m in parts for name in ("train", "eval")):
        return None
    calls = {str(node.target): None for node in graph.nodes if node.op == "call_module"}
    layers = {m: None for path in calls for m in root.get_submodule(path).modules() if reads_mode(m)}
    train = {m: m.training for _ in (root.train(),) for m in layers}
    evals = {m: m.training for _ in (root.eval(),) for m in layers}
    set_mode(root, False)
    for layer, trains in evals.items():
        if trains and not isinstance(layer, RefuseTrainMode):
            raise NotImplementedError(f"eval() leaves a {type(layer).__name__} in train mode")
    return next((type(layer).__name__ for layer, trains in train.items() if not trains), None)


def _named(paths: Iterable[str], root: nn.Module) -> str:
    """Name the first class, at one of the paths or around it, whose code branches on the mode."""
    for path in paths:
        while not branches_on_mode(root.get_submodule(path)) and path:
            path = path.rpartition(".")[0]
        if branches_on_mode(root.get_submodule(path)):
            return f" in {type(root.get_submodule(path)).__name__}"
    return ""


def branches_on_mode(module: nn.Module) -> bool:
    """Return whether code branches on the mode: no layer, dropout or batch norm (`set_mode` does those)."""
    held = isinstance(module, _ALWAYS_EVAL) or native(module) is not None
    return not held and not follows_mode(module) and reads_mode(module)


def sets_mode(functions: Iterable[FunctionType]) -> bool:
    """Does any function switch modules (`self.drop.eval()`), beside those that switch their own's parts?"""
    switches = {"train", "eval"}
    others = (function for function in functions if function.__name__ not in switches)
    return any(not switches.isdisjoint(names_of(function.__code__)) for function in others)
