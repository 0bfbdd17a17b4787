"""One spelling per call: what a graph node calls, whichever way the model or the capture wrote it.

`nn.Linear`, `F.linear` and `aten.linear.default` are all `Call("linear", (x, weight, bias))`.
"""

from __future__ import annotations

import builtins
import inspect
import itertools
import operator
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.fx.node import Argument

from fxprune.graph.modes import follows_mode
from fxprune.graph.nests import Value, map_leaves
from fxprune.graph.op_names import op_name, op_space
from fxprune.rules.modules import native
from fxprune.rules.registry import DEFAULT_RULES, Rule, RuleSet
from fxprune.rules.signatures import place_of

__all__ = ["Call", "Weight", "call_of", "filled", "weight_name"]

_IN_PLACE = {f"i{op}": op for op in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "matmul")}
# NumPy's words, which PyTorch takes beside its own; and one word of ours for several of PyTorch's.
_KEYWORDS = {
    "axis": "dim",
    "keepdims": "keepdim",
    "x": "input",
    "a": "input",
    "x1": "input",
    "x2": "other",
    "self": "input",
    "split_size_or_sections": "split_size",
    "split_sizes": "split_size",
}


@dataclass(frozen=True)
class Weight:
    """An argument that is a tensor of the called module: its name in the root's `state_dict`."""

    name: str


def weight_name(argument: object) -> str | None:
    """Return the name of the weight that an argument of a call is; None if it is computed, or left out."""
    if isinstance(argument, Weight):
        return argument.name
    if isinstance(argument, fx.Node) and argument.op == "get_attr":
        return str(argument.target)
    return None


def filled(
    arguments: object, of_node: Callable[[fx.Node], object], of_weight: Callable[[str], object]
) -> Value:
    """Put values in the place of the nodes and weights in nested arguments of a call."""

    def value(leaf: object) -> object:
        if isinstance(leaf, Weight):
            return of_weight(leaf.name)
        assert isinstance(leaf, fx.Node)
        return of_node(leaf)

    return map_leaves(arguments, (fx.Node, Weight), value)


@dataclass(frozen=True)
class Call:
    """A canonical call: arguments hold fx nodes, `Weight`s and constants; `node` is where it was read."""

    op: str
    args: tuple[object, ...]
    kwargs: dict[str, object]
    node: fx.Node

    @property
    def plain_op(self) -> str:
        """The op's name, whether torch.export wrote it or the user."""
        return self.op.removeprefix("aten.")

    def bind(self, rule: Rule) -> dict[str, object]:
        """Bind the arguments to the names of the rule's own signature.

        Raises:
            TypeError: the call does not fit the signature.
        """
        named = self._named(rule)
        kwargs = {named[name]: value for name, value in self.kwargs.items() if name in named}
        args = self.args
        if (several := _takes_several(rule)) in kwargs:  # tensors=[..]
            before = rule.positions[several] - len(args)
            args = (*args, *(kwargs.pop(name) for name in list(rule.positions)[len(args) :][:before]))
            args = (*args, kwargs.pop(several))
        if "result" in rule.signature.parameters:
            kwargs["result"] = None
        bound = rule.signature.bind(*args, **kwargs)
        bound.arguments.pop("result", None)
        return bound.arguments

    def keyword(self, rule: Rule, argument: str) -> str | None:
        """Return the keyword by which the call gives an argument of the rule, if it does."""
        return next((name for name, ours in self._named(rule).items() if ours == argument), None)

    def write(self, node: fx.Node, rule: Rule, argument: str, value: Argument) -> None:
        """Replace one argument of a copy of the node that this call was read from."""
        position = rule.positions[argument]
        if position < len(node.args):
            node.update_arg(position, value)
        elif (name := self.keyword(rule, argument)) is not None:
            node.update_kwarg(name, value)

    def _named(self, rule: Rule) -> dict[str, str]:
        """Map each keyword of the call to the parameter of the rule that it means.

        By name, or else by its place in PyTorch's signature, under one of its names there; what only says
        how a result is held is left out.
        """
        found: dict[str, str] = {}
        parameters = rule.signature.parameters.values()
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        positional = [p.name for p in itertools.takewhile(_is_positional, parameters)]
        for name in self.kwargs:
            own = rule.signature.parameters
            ours = name if name in own else _KEYWORDS.get(name, name)
            if ours not in own:
                spelled = (place_of(self.node, word, self.kwargs) for word in dict.fromkeys((name, ours)))
                places = () if self.node.op == "call_module" else (p for p in spelled if p is not None)
                place = next(iter(places), None)
                if place is not None and len(self.args) <= place < len(positional):
                    ours = positional[place]
                elif place is not None and not takes_any and _takes_several(rule):
                    ours = _takes_several(rule)
                elif not takes_any and name in _DECORATIONS:
                    continue
            found[name] = ours
        return found


def _takes_several(rule: Rule) -> str:
    """Return the name that the rule has for any number of arguments, if it takes them."""
    parameters = rule.signature.parameters.values()
    return next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "")


def _is_positional(parameter: inspect.Parameter) -> bool:
    return parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.name != "result"


# Keywords that change how a result is held, never what it means.
_DECORATIONS = frozenset(
    {"dtype", "device", "layout", "pin_memory", "memory_format", "out", "inplace", "eps", "requires_grad"}
)


def call_of(node: fx.Node, root: nn.Module, rules: RuleSet) -> Call:
    """Return the canonical call of a `call_module`, `call_function` or `call_method` node."""
    if node.op == "call_module":
        return _module_call(node, root, rules)
    name = op_name(node.target)
    known = (spelling for spelling in _spellings(node.target, name) if spelling in rules)
    return Call(next(known, name), node.args, dict(node.kwargs), node)


# The same function by a second name.
_SAME = {
    "special_expit": "sigmoid",
    "special_psi": "digamma",
    "special_gammaln": "lgamma",
    "special_gammainc": "igamma",
    "special_gammaincc": "igammac",
    "special_multigammaln": "mvlgamma",
    "unsafe_split_with_sizes": "split_with_sizes",
    "_safe_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "lift_fresh": "lift_fresh_copy",
    "matrix_H": "adjoint",
    "native_channel_shuffle": "channel_shuffle",
    "_prelu_kernel": "prelu",
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "_adaptive_avg_pool3d": "adaptive_avg_pool3d",
    "_reshape_alias": "_unsafe_view",
    "_unsafe_index_put": "index_put",
    "_index_put_impl": "index_put",
    "__iand__": "__and__",
    "__ior__": "__or__",
    "__ixor__": "__xor__",
    "iand": "and_",
    "ior": "or_",
    "ixor": "xor",
    "ilshift": "lshift",
    "irshift": "rshift",
}


def _second_names(name: str) -> list[str]:
    """List other names that a rule may have for a library's function: its family's, or a view's."""
    plain = name.removeprefix("special_").removesuffix("_copy")
    return [same for same in (_SAME.get(name), plain) if same and same != name]


def _spellings(target: Callable[..., object] | str, name: str) -> list[str]:
    """Return the names that a rule may have for what a node calls, the fullest first."""
    if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        full = op_space(target)
        if full != "aten":
            return _own(full, name)
        plain = name.rstrip("_")
        return [f"aten.{name}", f"aten.{plain}", name, plain, *_second_names(name)]
    plain = _IN_PLACE.get(name, name)
    if isinstance(target, types.BuiltinFunctionType) and target.__module__ == "torch":
        return [f"aten.{plain}", plain, plain.rstrip("_"), *_second_names(plain)]  # in ATen's order
    if isinstance(target, str) or _is_library(target):
        return [plain, plain.rstrip("_"), *_second_names(plain)]
    return _own(getattr(target, "__module__", "") or "", name, getattr(target, "__qualname__", name))


def _own(space: str, name: str, qualified: str = "") -> list[str]:
    """Spell a target's names; a user's function never passes for a library's of the same name."""
    full = [f"{space}.{qualified or name}", f"{space}.{name}"]
    return [*full, *([] if name in DEFAULT_RULES else [name])]


def _is_library(target: Callable[..., object]) -> bool:
    """Return whether a function's name alone tells what it does: PyTorch's, Python's own operators."""
    module = getattr(target, "__module__", None) or ""
    return module.split(".")[0] in {"torch", "_operator", "builtins", "math", ""} or target in (
        operator.getitem,
        builtins.getattr,
    )


def _module_call(node: fx.Node, root: nn.Module, rules: RuleSet) -> Call:
    path = str(node.target)
    module = root.get_submodule(path)
    entry = native(module)
    if entry is None and follows_mode(module):
        return Call("dropout", node.args, dict(node.kwargs), node)
    if entry is None:
        return _opaque_call(node, module, rules)
    values: list[object] = []
    names = {id(t): name for name, t in module._parameters.items()}
    for name in entry.arguments:
        value = getattr(module, name)
        if isinstance(value, list) and all(id(t) in names for t in value):  # of a recurrent layer
            value = [Weight(f"{path}.{names[id(t)]}") for t in value]
        values.append(Weight(f"{path}.{name}") if isinstance(value, torch.Tensor) else value)
    # The `output_size` of a transposed convolution is beyond them: pixels alone.
    given = [*node.args, *_in_order(module, node)][: entry.inputs]
    missing = [None] * (entry.inputs - len(given))
    return Call(entry.op, (*given, *missing, *values), {}, node)


def _in_order(module: nn.Module, node: fx.Node) -> list[object]:
    """List what a call of a module gives by name, in the order of its `forward`; defaults stand between."""
    if len(node.kwargs) < 2 and not node.args:
        return [*node.kwargs.values()]
    rest = [*inspect.signature(type(module).forward).parameters.values()][1 + len(node.args) :]
    last = max((i for i, p in enumerate(rest) if p.name in node.kwargs), default=-1)
    return [node.kwargs.get(p.name, p.default) for p in rest[: last + 1]]


def _opaque_call(node: fx.Node, module: nn.Module, rules: RuleSet) -> Call:
    """Call a module by its class; its tensors and numbers go by name where the rule asks for them."""
    cls = type(module)
    known = (name for name in _own(cls.__module__, cls.__name__, cls.__qualname__) if name in rules)
    op = next(known, cls.__name__)
    rule = rules.get(op)
    kwargs: dict[str, object] = dict(node.kwargs)
    for name in list(rule.signature.parameters)[len(node.args) :] if rule is not None else ():
        if name not in kwargs and name != "result" and hasattr(module, name):
            value = getattr(module, name)
            kwargs[name] = Weight(f"{node.target}.{name}") if isinstance(value, torch.Tensor) else value
    return Call(op, node.args, kwargs, node)
