"""Functions and modules of our own that a captured graph calls.  A call with a proxy becomes one graph node.

They are found by name when a graph is saved or pickled (`own_name`): what is here keeps its name for ever.

Guards are in `guards.py`, nodes about precisions in `precision_nodes.py`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.graph.forward_only import ForwardOnly as ForwardOnly
from fxprune.graph.guards import guard as guard
from fxprune.graph.guards import guard_argument as guard_argument
from fxprune.graph.guards import guard_branch as guard_branch
from fxprune.graph.guards import guard_device as guard_device
from fxprune.graph.guards import guard_given as guard_given
from fxprune.graph.guards import guard_kind as guard_kind
from fxprune.graph.guards import guard_layout as guard_layout
from fxprune.graph.guards import guard_size as guard_size
from fxprune.graph.guards import guard_tensor as guard_tensor
from fxprune.graph.guards import guard_values as guard_values
from fxprune.graph.guards import is_guard as is_guard
from fxprune.graph.guards import kind_of as kind_of
from fxprune.graph.guards import layout_of_argument as layout_of_argument
from fxprune.graph.guards import one_node as one_node
from fxprune.graph.precision_nodes import autocast_back as autocast_back
from fxprune.graph.precision_nodes import autocast_off as autocast_off
from fxprune.graph.precision_nodes import dtype_limit as dtype_limit
from fxprune.graph.precision_nodes import guard_dtype as guard_dtype
from fxprune.graph.precision_nodes import guard_precision as guard_precision
from fxprune.graph.precision_nodes import precision_of as precision_of

__all__ = [
    *("AutogradFunction", "ForwardOnly", "ModeValue", "_getitem"),
    *(
        "class_named",
        "default_dict",
        "makes_output",
        "name_of_class",
        "object_of",
        "output_in_order",
        "split_by_sizes",
        "written",
    ),
]


@one_node
def written(x: Tensor, index: Any, value: Any) -> Tensor:
    """Compute what `x[index] = value` leaves in x."""
    x = x.clone()
    x[index] = value
    return x


class AutogradFunction(nn.Module):
    """Calls a function with a derivative of its own."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, like: Any = None) -> Any:
        return self.function.apply(*args)

    def extra_repr(self) -> str:
        return self.function.__name__


class ModeValue(nn.Module):
    """A constant that depends on `self.training`."""

    def __init__(self, train: Any, eval: Any) -> None:
        super().__init__()
        self.train_value, self.eval_value = train, eval

    def forward(self) -> Any:
        return self.train_value if self.training else self.eval_value

    def extra_repr(self) -> str:
        return f"train={self.train_value}, eval={self.eval_value}"


def split_by_sizes(x: torch.Tensor, sizes: Sequence[int], dim: int = 0) -> tuple[torch.Tensor, ...]:
    """Split a tensor into parts of given sizes, as every kind of split does once its parts differ."""
    return torch.split(x, list(sizes), dim)


def _getitem(value: Any, index: int) -> Any:
    return value[index]


# ---------------------------------------------------------------- objects that a model returns


def object_of(kind: str, attributes: dict[str, Any]) -> Any:
    """Return an object of a class by its name (`package.module:Class`), made of its attributes.

    A model returns it as its own code built it, a cache of keys and values say: none of that code runs again.
    """
    cls = class_named(kind)
    made = cls.__new__(cls)
    made.__dict__.update((name, _plain(value)) for name, value in attributes.items())
    return made


def output_in_order(kind: str, items: dict[str, Any]) -> Any:
    """Return an output of a class by its name, which is a dict too, with its items in the order given.

    Its constructor puts them in the order of its fields; code that sets one later puts it last, and
    whoever takes outputs by position (`out[1]`) sees that.
    """
    made = class_named(kind)(**items)
    for name, value in items.items():
        if name not in made:  # a constructor leaves out None, which code may set
            made[name] = value
        made.move_to_end(name)
    return made


def in_other_order(cls: type, names: Sequence[str]) -> bool:
    """Does an output, a dict whose class is called with its fields, hold its items in another order?"""
    if not (issubclass(cls, OrderedDict) and dataclasses.is_dataclass(cls) and _is_found(cls)):
        return False
    fields = [field.name for field in dataclasses.fields(cls)]
    return {*names} <= {*fields} and [*names] != [name for name in fields if name in names]


def class_named(kind: str) -> Any:
    """Return the class `package.module:Class`."""
    module, _, path = kind.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


# As torch.compiler.assume_constant_result marks a function; that imports all of torch._dynamo.
vars(class_named)["_dynamo_marked_constant"] = True


def name_of_class(cls: type) -> str:
    """Name a class as `class_named` finds it."""
    return f"{cls.__module__}:{cls.__qualname__}"


def _is_found(named: Any) -> bool:
    """Does `class_named` find it?  Not a lambda, a method's own function, or a class made in a function."""
    try:
        return named is not None and class_named(name_of_class(named)) is named
    except (AttributeError, ImportError):
        return False


def default_dict(call: Callable[..., fx.Node], factory: Any, items: dict[Any, Any]) -> fx.Node:
    """Make a defaultdict in a graph, by the graph's `call_function`; without a factory that has no name."""
    named = call(class_named, (name_of_class(factory),)) if _is_found(factory) else None
    return call(defaultdict, (named, items))


def makes_output(node: fx.Node) -> bool:
    """Return whether a node calls the class of an output, whose fields are the arguments."""
    made = node.op == "call_function" and isinstance(node.target, type)
    return made or node.target in (object_of, output_in_order)


def _plain(value: Any) -> Any:
    """Make plain lists and dicts of a graph's own kinds."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return value
