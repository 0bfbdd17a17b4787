"""Find products whose scale follows a head_dim that shrinks: the query projection takes up the ratio."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import fx, nn

from fxprune.analysis.analysis import Analysis
from fxprune.graph.tensors import module_of
from fxprune.passes.shrinking.fold_scales import can_fold, constant_of
from fxprune.result.pruned_module import PrunedModule
from fxprune.result.selection import Selection
from fxprune.rules.axes import Atom, Axis, Product
from fxprune.rules.calls import call_of
from fxprune.rules.registry import DEFAULT_RULES

__all__ = ["POWERS", "computed_scales", "default_scales", "everywhere"]

POWERS = (-0.5, 0.5, -0.25, 0.25, -1.0)  # p, of the scales size**p that code takes


def default_scales(analysis: Analysis, selection: Selection) -> dict[str, float]:
    """Map nodes to 1/sqrt(head_dim) as the model's own code takes it on the pruned weights.

    Of calls that were given no scale, and whose query comes straight from a weight.
    """
    found = {}
    for node in analysis.axes:
        if node.meta.get("default_scale"):
            query = node.args[0] if node.args else node.kwargs["query"]
            head_dim = analysis.axes[query][0][-1]  # type: ignore[index]
            if selection.shrinks(head_dim) and can_fold(analysis.module, node):
                found[node.name] = selection.size(head_dim) ** -0.5
    return found


def computed_scales(
    analysis: Analysis, selection: Selection, pruned: PrunedModule, modules: Collection[str]
) -> dict[str, float]:
    """Map products in some modules to what their constant would be, were it computed from the new sizes.

    A constant is taken for a power of a size that its operand has and that shrinks.

    modules: paths of modules, each with all inside it; of the root (""), its own code alone.
    """
    found = {}
    axes = {node.name: dims for node, values in analysis.axes.items() for dims in values[:1]}
    for node in pruned.graph.nodes:
        where = module_of(node)
        if not node.op.startswith("call") or not any(f"{where}.".startswith(f"{m}.") for m in modules):
            continue
        constant = constant_of(call_of(node, pruned, DEFAULT_RULES))
        if constant is None:
            continue
        for axis in _near(node, axes):
            for power in POWERS if axis.size else ():  # a cache is empty at first
                same = abs(constant - axis.size**power) <= 1e-6 * abs(constant)
                if same and selection.shrinks(axis) and can_fold(pruned, node):
                    found[node.name] = selection.size(axis) ** power
    return found


def everywhere(model: nn.Module) -> list[str]:
    """List the paths that `computed_scales` takes for all of a model: the root's own code, and each child."""
    return ["", *(name for name, _ in model.named_children())]


def _near(node: fx.Node, axes: dict[str, tuple[Axis, ...]]) -> Iterator[Axis]:
    """List the axes of what a node multiplies, of what that was made of, and their factors."""
    inputs = [n for n in node.all_input_nodes for n in (n, *n.all_input_nodes)]
    for near in inputs:
        for axis in axes.get(near.name, ()):
            yield axis
            if not isinstance(axis, Atom):
                yield from axis.parts if isinstance(axis, Product) else ()
