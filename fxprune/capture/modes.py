"""Train and eval: how one graph follows the mode that the model's Python code branched on.

The model is captured once in eval mode and once in train mode.  Where the two graphs differ only in
constants (`dropout_p=0.1` here, `0.0` there), the constant becomes a `ModeValue`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.decisions import holds
from fxprune.capture.writes import state_of, written_state
from fxprune.rules.modules import native
from fxprune.rules.training_mode import follows_mode, reads_mode

__all__ = ["ModeValue", "follow_modes", "merge_modes", "module_path", "set_mode", "structural_copy"]


class ModeValue(nn.Module):
    """A constant that depends on `self.training`."""

    def __init__(self, train: Any, eval: Any) -> None:
        super().__init__()
        self.train_value, self.eval_value = train, eval

    def forward(self) -> Any:
        return self.train_value if self.training else self.eval_value

    def extra_repr(self) -> str:
        return f"train={self.train_value}, eval={self.eval_value}"


def structural_copy(
    model: nn.Module, tensor: Callable[[torch.Tensor], torch.Tensor] = lambda t: t
) -> nn.Module:
    """The model's modules and Python state copied, its tensors shared: safe to trace and to edit.

    `tensor` gives what stands for a tensor in the copy.
    """
    held = {id(t): t for m in model.modules() for t in _tensors(m.__dict__)}
    shared: dict[int, Any] = {key: tensor(t) for key, t in held.items()}
    try:
        return copy.deepcopy(model, memo=dict(shared))
    except TypeError:  # a lock, an open file: what can't be copied is shared as well
        state = [value for m in model.modules() for value in m.__dict__.values()]
        shared |= {id(value): value for value in state if not _can_be_copied(value, shared)}
        return copy.deepcopy(model, memo=dict(shared))


def _can_be_copied(value: Any, shared: dict[int, Any]) -> bool:
    if isinstance(value, dict) and any(isinstance(v, nn.Module) for v in value.values()):
        return True  # its submodules, of which each has its turn
    try:
        copy.deepcopy(value, memo=dict(shared))
    except TypeError:
        return False
    return True


def _tensors(value: Any, depth: int = 4) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict) and depth:
        for item in value.values():
            yield from _tensors(item, depth - 1)
    elif isinstance(value, (list, tuple)) and depth:
        for item in value:
            yield from _tensors(item, depth - 1)


def set_mode(model: nn.Module, training: bool) -> None:
    """Switch modes through the modules' own `train`; batch norms stay in eval, a layer of their own."""
    model.train(training)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.training = False


FOLLOWS_EVAL = "train mode runs other code than eval mode: the result follows eval mode"


def follow_modes(graph: fx.Graph, trace_training: Callable[[], fx.Graph], root: nn.Module) -> list[str]:
    """Make a graph that was captured in eval mode follow the mode.  Returns notes on what it can't."""
    if not any(_branches_on_mode(m) for m in root.modules()):
        return []
    try:
        training = trace_training()
    except Exception:  # the model's train mode may do what can't be captured; its eval mode was
        return [FOLLOWS_EVAL]
    notes = _writes_left_out(graph, training, root)
    return notes if merge_modes(graph, training, root) else [*notes, FOLLOWS_EVAL]


def _writes_left_out(graph: fx.Graph, training: fx.Graph, root: nn.Module) -> list[str]:
    """A result that follows eval mode does not keep what a model counts or averages while it trains."""
    names = written_state(training, root) - written_state(graph, root)
    return [f"train mode writes to {', '.join(sorted(names))}: the result does not"] if names else []


def _branches_on_mode(module: nn.Module) -> bool:
    """Not a layer, a dropout, or a batch norm of any kind (which `set_mode` holds in eval)."""
    held = isinstance(module, nn.modules.batchnorm._NormBase) or native(module) is not None
    return not held and not follows_mode(module) and reads_mode(module)


def merge_modes(eval_graph: fx.Graph, train_graph: fx.Graph, root: nn.Module) -> bool:
    """Make `eval_graph` follow the mode.  False, and nothing done, if more than constants differ."""
    kept = written_state(eval_graph, root)

    def is_impure(node: fx.Node) -> bool:
        return node.op in ("placeholder", "output") or node.target is holds or state_of(node, root) in kept

    for graph in (eval_graph, train_graph):
        graph.eliminate_dead_code(is_impure_node=is_impure)
        _spell_defaults(graph)
    pairs = list(zip(eval_graph.nodes, train_graph.nodes, strict=False))
    if len(eval_graph.nodes) != len(train_graph.nodes):
        return False
    twin = {b: a for a, b in pairs}
    if not all(_aligned(a, b, twin) for a, b in pairs):
        return False
    switches: dict[Any, str] = {}
    for node, other in pairs:
        node.args, node.kwargs = _follow(
            (node.args, node.kwargs), (other.args, other.kwargs), node, root, switches
        )
    return True


def _spell_defaults(graph: fx.Graph) -> None:
    """ATen calls leave out trailing defaults, in one mode more of them than in the other."""
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            positional = [a for a in node.target._schema.arguments if not a.kwarg_only]
            rest = positional[len(node.args) :]
            if all(a.has_default_value() and a.name not in node.kwargs for a in rest):
                node.args = (*node.args, *(a.default_value for a in rest))


def _aligned(a: fx.Node, b: fx.Node, twin: dict[fx.Node, fx.Node]) -> bool:
    return a.op == b.op and a.target == b.target and _same_shape((a.args, a.kwargs), (b.args, b.kwargs), twin)


def _same_shape(a: Any, b: Any, twin: dict[fx.Node, fx.Node]) -> bool:
    if isinstance(b, fx.Node):
        return twin.get(b) is a
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same_shape(a[k], b[k], twin) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same_shape(x, y, twin) for x, y in zip(a, b, strict=True))
    return not isinstance(a, fx.Node)


def _follow(a: Any, b: Any, node: fx.Node, root: nn.Module, switches: dict[Any, str]) -> Any:
    """`a`, with a call of a `ModeValue` of the module at hand wherever `b` holds another constant."""
    if isinstance(a, dict):
        return {k: _follow(a[k], b[k], node, root, switches) for k in a}
    if isinstance(a, (list, tuple)):
        return type(a)(_follow(x, y, node, root, switches) for x, y in zip(a, b, strict=True))
    if isinstance(a, fx.Node) or (type(a) is type(b) and a == b) or not isinstance(a, (bool, int, float)):
        return a
    path = node.meta.get("module") or ""
    if (path, a, b) not in switches:
        switches[path, a, b] = f"{path}._mode_{len(switches)}".lstrip(".")
        owner = root.get_submodule(path)
        owner.add_module(switches[path, a, b].rpartition(".")[2], ModeValue(train=b, eval=a))
    with node.graph.inserting_before(node):
        return node.graph.call_module(switches[path, a, b])


def module_path(node: fx.Node) -> str:
    """The module whose code made an exported node."""
    stack = node.meta.get("nn_module_stack") or {}
    path, _ = next(reversed(stack.values()), ("", None))
    return path
