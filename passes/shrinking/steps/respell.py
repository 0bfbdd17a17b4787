"""Write the new size of each axis wherever a call spells one as an integer."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fxprune.analysis.infer import Step
from fxprune.graph.own_nodes import _getitem
from fxprune.passes.shrinking.steps.draft import Draft
from fxprune.passes.shrinking.steps.pin_sizes import has_constant_size, rescaled
from fxprune.result.selection import Selection
from fxprune.rules.axes import Axis
from fxprune.rules.modules import native
from fxprune.rules.registry import Bound

__all__ = ["respell"]


def respell(draft: Draft) -> None:
    """Write the new size of each axis wherever a call spells one as an integer.

    Needs: integers that spell the original's sizes (`pin_sizes`).  Guarantees: every call fits operands of
    the selection's sizes; one at which nothing shrinks is not changed.
    """
    for node, step in draft.analysis.steps.items():
        _respell_call(draft.new_of[node], step, draft.selection, draft.root)


def _respell_call(node: fx.Node, step: Step, selection: Selection, root: nn.Module) -> None:
    for argument, spelled in step.flow.sizes.items():
        if not _shrinks(spelled, selection):
            continue
        assert step.rule is not None
        position = step.rule.positions[argument]
        if node.op == "call_module":
            _respell_attribute(root.get_submodule(str(node.target)), argument, position, spelled, selection)
            continue
        old = step.call.bind(step.rule).get(argument)
        if old is None:
            continue
        if isinstance(spelled, list) and not isinstance(old, (list, tuple)):
            _respell_split(node, step, argument, spelled, selection)
            continue
        current = node.args[position] if position < len(node.args) else _keyword(node, step, argument)
        step.call.write(node, step.rule, argument, _new_value(current, spelled, selection, node))


def _keyword(node: fx.Node, step: Step, argument: str) -> Any:
    assert step.rule is not None
    name = step.call.keyword(step.rule, argument)
    assert name is not None
    return node.kwargs[name]


def _respell_attribute(
    module: nn.Module, argument: str, position: int, spelled: Any, selection: Selection
) -> None:
    """Write a layer's attribute; a user's own class has it under the name that the rule asks for."""
    entry = native(module)
    name = entry.arguments[position - entry.inputs] if entry else argument
    old = getattr(module, name)
    if isinstance(spelled, (list, tuple)):
        value = tuple(selection.size(axis) if o != -1 else -1 for axis, o in zip(spelled, old, strict=True))
        setattr(module, name, value)
    else:
        setattr(module, name, selection.size(spelled))


def _respell_split(node: fx.Node, step: Step, argument: str, parts: list[Axis], selection: Selection) -> None:
    """Write the parts' sizes for chunk(2), split(64): equal parts stay one number, others are listed."""
    sizes = [selection.size(part) for part in parts]
    equal = len({*sizes[:-1]}) <= 1 and sizes[-1] <= sizes[0]
    if equal and argument == "split_size":
        assert step.rule is not None
        step.call.write(node, step.rule, argument, sizes[0])
    elif len(set(sizes)) > 1:
        assert step.rule is not None and step.flow.replacement is not None
        dim = step.call.bind(step.rule).get("dim", 0)
        node.op, node.target = "call_function", step.flow.replacement
        node.args, node.kwargs = (node.all_input_nodes[0], sizes, int(str(dim))), {}


def _new_value(value: Any, spelled: Any, selection: Selection, node: fx.Node) -> Any:
    """Return an argument with the spelled sizes replaced; -1 and what no shrinking axis spells stay."""
    if spelled is None or not _shrinks(spelled, selection):
        return value
    if isinstance(value, slice):
        return slice(
            _new_value(value.start, spelled.start, selection, node),
            _new_value(value.stop, spelled.stop, selection, node),
            value.step,
        )
    if isinstance(spelled, (list, tuple)):
        if isinstance(value, fx.Node):
            with node.graph.inserting_before(node):
                value = [node.graph.call_function(_getitem, (value, i)) for i in range(len(spelled))]
        pairs = zip(value, spelled, strict=True)
        return type(value)(_new_value(v, s, selection, node) for v, s in pairs)
    bound = isinstance(spelled, Bound)
    axis = spelled.axis if bound else spelled
    if isinstance(value, fx.Node) and (bound or not has_constant_size(axis)):
        with node.graph.inserting_before(node):
            return rescaled(node.graph, value, axis, selection, to_pruned=True)
    if isinstance(value, int) and value < 0:
        return -selection.size(axis) if bound else -1
    return selection.size(axis)


def _shrinks(spelled: Any, selection: Selection) -> bool:
    if spelled is None:
        return False
    if isinstance(spelled, Bound):
        return selection.shrinks(spelled.axis)
    if isinstance(spelled, slice):
        return _shrinks(spelled.start, selection) or _shrinks(spelled.stop, selection)
    if isinstance(spelled, (list, tuple)):
        return any(_shrinks(s, selection) for s in spelled)
    return selection.shrinks(spelled)
