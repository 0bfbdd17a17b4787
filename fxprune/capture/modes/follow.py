"""Train and eval: how one graph follows the mode that the model's Python code branched on.

The model is captured once in eval mode and once in train mode, and the two are merged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from torch import fx, nn

from fxprune.capture.modes.merge import difference, merge_modes
from fxprune.graph.training_mode import follows_mode, reads_mode
from fxprune.graph.writes import written_state
from fxprune.rules.modules import native

__all__ = ["FOLLOWS_EVAL", "branches_on_mode", "follow_modes", "of_training", "set_mode"]


def set_mode(model: nn.Module, training: bool, keep_eval: Collection[type] = ()) -> None:
    """Switch modes through the modules' own `train`; batch norms stay in eval, a layer of their own.

    `keep_eval`: classes of modules that stay in eval mode as well.
    """
    model.train(training)
    for module in model.modules():
        if type(module) in keep_eval or isinstance(module, nn.modules.batchnorm._NormBase):
            module.training = False


FOLLOWS_EVAL = "training runs other operations: the result runs in eval mode alone"
LEFT_OUT = "train mode writes to"

Trace = Callable[[Collection[type]], fx.Graph]


def follow_modes(
    graph: fx.Graph,
    trace_training: Trace,
    root: nn.Module,
    kept: Callable[[], Iterable[str]] = tuple,
) -> list[str]:
    """Make a graph that was captured in eval mode follow the mode.  Returns notes on what it can't.

    `trace_training` captures the model in train mode, but for the modules of some classes.  Where one runs
    other code in train mode, its class keeps to eval mode, and the others are tried again.  `kept` names the
    attributes that train mode alone sets.
    """
    follow = list(dict.fromkeys(type(m) for m in root.modules() if branches_on_mode(m)))
    if not follow:
        return []
    apart: list[type] = []
    left_out: set[str] = set()
    while follow:
        try:
            training = trace_training(apart)
        except Exception as error:  # train mode may do what can't be captured; eval mode was
            where = [error.module_path] if hasattr(error, "module_path") else []
        else:
            left_out |= written_state(training, root) - written_state(graph, root)
            where = difference(graph, training, root)
            if not where:
                merge_modes(graph, training, root)
                break
        cause = next(filter(None, (_nearest(path, follow, root) for path in where)), None)
        follow = [cls for cls in follow if cause not in (cls, None)]
        apart += [cause] if cause else []
    there = f" in {', '.join(sorted(cls.__name__ for cls in apart))}" if follow else ""
    notes = [FOLLOWS_EVAL + there] if apart or not follow else []
    left_out |= {*kept()}
    if left_out:
        notes.insert(0, f"{LEFT_OUT} {', '.join(sorted(left_out))}: the result runs in eval mode alone")
    return notes


def of_training(notes: Iterable[str]) -> tuple[str, ...]:
    """Select what notes say of train mode: what the model does there and its graph does not."""
    return tuple(note for note in notes if note.startswith((FOLLOWS_EVAL, LEFT_OUT)))


def _nearest(path: str, classes: Collection[type], root: nn.Module) -> type | None:
    """Return the class of the module at a path, or else of the one around it, that is among some."""
    while type(root.get_submodule(path)) not in classes:
        if not path:
            return None
        path = path.rpartition(".")[0]
    return type(root.get_submodule(path))


def branches_on_mode(module: nn.Module) -> bool:
    """Return whether code branches on the mode: no layer, dropout or batch norm (`set_mode` does those)."""
    held = isinstance(module, nn.modules.batchnorm._NormBase) or native(module) is not None
    return not held and not follows_mode(module) and reads_mode(module)
