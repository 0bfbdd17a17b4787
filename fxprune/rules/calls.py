"""One spelling per call: what a graph node calls, whichever way the model or the capture wrote it.

`nn.Linear`, `F.linear` and `aten.linear.default` are all `Call("linear", (x, weight, bias))`.
"""

from __future__ import annotations

import builtins
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxprune.graph.op_names import op_name
from fxprune.graph.training_mode import follows_mode
from fxprune.rules.modules import native
from fxprune.rules.registry import DEFAULT_RULES, Rule, RuleSet

__all__ = ["Call", "Weight", "call_of"]

_IN_PLACE = {f"i{op}": op for op in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "matmul")}
_KEYWORDS = {
    "axis": "dim",
    "keepdims": "keepdim",
    "self": "input",
    "split_size_or_sections": "split_size",
    "split_sizes": "split_size",
}


@dataclass(frozen=True)
class Weight:
    """An argument that is a tensor of the called module: its name in the root's `state_dict`."""

    name: str


@dataclass
class Call:
    """A canonical call: arguments hold fx nodes, `Weight`s and constants."""

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def bind(self, rule: Rule) -> dict[str, Any]:
        """Arguments by the names of the rule's own signature."""
        kwargs = {canonical_keyword(name): value for name, value in self.kwargs.items()}
        if "result" in rule.signature.parameters:
            kwargs["result"] = None
        accepted = rule.signature.parameters
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values()):
            kwargs = {name: v for name, v in kwargs.items() if name in accepted or not _decorates(name)}
        bound = rule.signature.bind(*self.args, **kwargs)
        bound.arguments.pop("result", None)
        return bound.arguments

    def write(self, node: fx.Node, rule: Rule, argument: str, value: Any) -> None:
        """Replace one argument of the node that this call was read from."""
        position = list(rule.signature.parameters).index(argument)
        if position < len(node.args):
            node.update_arg(position, value)
            return
        for name in node.kwargs:
            if canonical_keyword(name) == argument:
                node.update_kwarg(name, value)


def canonical_keyword(name: str) -> str:
    """NumPy's and ATen's names for an argument are PyTorch's by another name."""
    return _KEYWORDS.get(name, name)


def _decorates(name: str) -> bool:
    """Keywords that change how a result is held, never what it means."""
    return name in {
        "dtype",
        "device",
        "layout",
        "pin_memory",
        "memory_format",
        "out",
        "inplace",
        "eps",
    }


def call_of(node: fx.Node, root: nn.Module, rules: RuleSet) -> Call:
    """The canonical call of a `call_module`, `call_function` or `call_method` node."""
    if node.op == "call_module":
        return _module_call(node, root)
    name = op_name(node.target)
    known = (spelling for spelling in _spellings(node.target, name) if spelling in rules)
    return Call(next(known, name), node.args, dict(node.kwargs))


def _spellings(target: Any, name: str) -> list[str]:
    if isinstance(target, torch._ops.OpOverload):
        space = target._schema.name.split("::")[0]
        own = [f"{space}.{name}"]
        return [*own, name, name.rstrip("_")] if space == "aten" else own
    plain = _IN_PLACE.get(name, name)
    return (
        [plain, plain.rstrip("_")] if isinstance(target, str) or _is_library(target) else _own(target, name)
    )


def _own(target: Any, name: str) -> list[str]:
    """A user's function never passes for a library's of the same name."""
    return [
        f"{getattr(target, '__module__', '')}.{name}",
        *([] if name in DEFAULT_RULES else [name]),
    ]


def _is_library(target: Callable[..., Any]) -> bool:
    """Functions whose name alone says what they do: PyTorch's, Python's own operators."""
    module = getattr(target, "__module__", None) or ""
    return module.split(".")[0] in {"torch", "_operator", "builtins", "math", ""} or target in (
        operator.getitem,
        builtins.getattr,
    )


def _module_call(node: fx.Node, root: nn.Module) -> Call:
    path = str(node.target)
    module = root.get_submodule(path)
    entry = native(module)
    if entry is None and follows_mode(module):
        return Call("dropout", node.args, dict(node.kwargs))
    if entry is None:
        return Call(type(module).__name__, node.args, dict(node.kwargs))
    values: list[Any] = []
    for name in entry.arguments:
        value = getattr(module, name)
        values.append(Weight(f"{path}.{name}") if isinstance(value, torch.Tensor) else value)
    inputs = (*node.args, *node.kwargs.values())
    return Call(entry.op, (*inputs, *values), {})
