"""An instance of the user's own class whose `forward` alone is a graph's; what it calls stays the user's own.

Its class is made for it: one that inherits from the user's, has its name, and is pickled as data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import fx, nn

from fxprune.errors import UnsupportedModuleError
from fxprune.graph.as_data import NodeData, graph_as_data
from fxprune.graph.classes import subclass_of
from fxprune.graph.nests import Value
from fxprune.result.own_spelling import unspelled
from fxprune.result.own_tables import untabled
from fxprune.result.pruned_module import FORM, constants_kept, forward_of_data

__all__ = ["runs_graph", "users_class", "with_forward", "without_forward"]

MADE = "_fxprune_forward"  # in a class made here: (the user's class, the graph as data, what is barred)


def without_forward(module: nn.Module, why: str) -> None:
    """Let a module refuse to be called, since the graph of a module around it does its work."""
    module.__class__ = _class(users_class(module), None, {"forward": why})


def with_forward(instance: nn.Module, graph: fx.Graph, barred: Mapping[str, str]) -> None:
    """Let an instance run a graph as its `forward`.

    Args:
        graph: it names the instance's own modules and tensors.
        barred: methods of the class that would run the code that can't hold the sizes -> why, in words.
    """
    instance.__class__ = _class(users_class(instance), graph_as_data(graph), dict(barred))


def runs_graph(module: nn.Module) -> bool:
    """Is a module's `forward` a graph's?"""
    made = vars(unspelled(untabled(type(module)))).get(MADE)
    return made is not None and made[1] is not None


def users_class(module: nn.Module) -> type[nn.Module]:
    """Return a module's class; the user's, where one was made here."""
    cls = unspelled(untabled(type(module)))
    made = vars(cls).get(MADE)
    return made[0] if made else cls


def _class(cls: type[nn.Module], data: list[NodeData] | None, barred: dict[str, str]) -> type[nn.Module]:
    state: dict[str, object] = {name: _raising(name, why) for name, why in barred.items()}
    if data is not None:
        state["forward"] = forward_of_data(cls.__name__, data)
        state["_apply"] = _applied
    state |= {"__reduce_ex__": _reduced, MADE: (cls, data, barred)}
    made: type[nn.Module] = subclass_of(cls, state)
    return made


def _raising(name: str, why: str) -> Callable[..., None]:
    def barred(self: nn.Module, *args: object, **kwargs: object) -> None:
        raise UnsupportedModuleError(
            f"{type(self).__name__}.{name} would run code that can't hold the pruned sizes ({why}): "
            "only the model itself can be called"
        )

    barred.__name__ = name
    return barred


def _applied(self: nn.Module, *args: Value, **kwargs: Value) -> nn.Module:
    """Move or cast what the instance holds; what the original's code makes is moved alone."""
    held, made = vars(self).get(FORM), dict(self.named_buffers())
    with constants_kept(self, [name for name in (held.record.constants if held else ()) if name in made]):
        here: Value = next(cls for cls in type(self).__mro__ if vars(cls).get("_apply") is _applied)
        applied: nn.Module = super(here, self)._apply(*args, **kwargs)
    return applied


def _reduced(self: nn.Module, protocol: int) -> tuple[object, ...]:
    """Return what makes the instance again: the user's class, the graph as data, and its state."""
    cls, data, barred = getattr(type(self), MADE)  # which may inherit from the one made here
    return _made_anew, (cls, data, barred), *cls.__reduce_ex__(self, protocol)[2:]


def _made_anew(cls: type[nn.Module], data: list[NodeData] | None, barred: dict[str, str]) -> nn.Module:
    made = _class(cls, data, barred)
    instance: nn.Module = made.__new__(made)
    return instance
