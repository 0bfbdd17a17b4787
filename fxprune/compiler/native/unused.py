"""Find what axes the weights have that a model's code uses for nothing: a head whose result no output shows.

The graph has no such call.  The instance runs its own code, which makes it: its weights have to fit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.analyze import AnalysisOptions, typed_by
from fxprune.certify.comparison import same_draws
from fxprune.certify.float64 import in_double, in_eval_mode
from fxprune.choose.planned import as_planned
from fxprune.compiler.native.fingerprint import Fingerprint
from fxprune.compiler.native.graph_values import GraphValues
from fxprune.compiler.native.structure import doubled_copy
from fxprune.compiler.native.training import always_training
from fxprune.errors import FxpruneError
from fxprune.graph.classes import is_torchs, subclass_of
from fxprune.graph.copies import structural_copy
from fxprune.graph.example import Example, seeded_noise
from fxprune.graph.tensors import in_float64, is_inside, module_of
from fxprune.result.plan import Plan
from fxprune.result.selection import Selection
from fxprune.rules.axes import Atom, Axis, Product, Sum
from fxprune.rules.modules import native
from fxprune.rules.registry import Axes

__all__ = ["idle_kept", "unused_axes"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # these call, or list, whatever lies in them


def unused_axes(model: nn.Module, analysis: Analysis) -> Mapping[str, Axes]:
    """Type the weights that the captured graph left out, in terms of the axes of what it holds.

    Those that eval mode uses for nothing, then those that only train mode uses (a second head).  A dimension
    that nothing else in use shares has an axis of its own, which no plan shrinks.  Empty where nothing was
    left out, or where its calls can't be traced.
    """
    idle = {name for name, _ in model.named_parameters() if name not in analysis.names}
    found: dict[str, Axes] = {}
    for training in (False, True):
        left = {name.rpartition(".")[0] for name in idle if name not in found}
        if left:
            found |= _typed(model, analysis, left, training=training)
    left = {name.rpartition(".")[0] for name in idle if name not in found}
    found |= _by_inputs(model, analysis, left) if left else {}
    for name in idle - {*found}:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if native(module) is None:
            found[name] = _beside(module._parameters[leaf], owner, analysis)  # type: ignore[arg-type]
    beside = {name.rpartition(".")[0] for name in idle}  # running statistics, of layers that are not used
    idle |= {
        name
        for name, _ in model.named_buffers()
        if name not in analysis.names and name.rpartition(".")[0] in beside
    }
    return {name: axes for name, axes in found.items() if name in idle}


def idle_kept(model: nn.Module, analysis: Analysis, plan: Plan) -> dict[str, tuple[np.ndarray | None, ...]]:
    """Map the weights that the captured graph left out to what a plan keeps of each of their dimensions."""
    analysis = as_planned(analysis, plan)
    selection = Selection.from_plan(analysis, plan)
    return {
        name: tuple(selection.positions(axis) for axis in axes)
        for name, axes in unused_axes(model, analysis).items()
    }


def _by_inputs(model: nn.Module, analysis: Analysis, idle: set[str]) -> Mapping[str, Axes]:
    """Type the weights of layers that are given one tensor, which the graph computes."""
    double, given = doubled_copy(model), dict[str, Tensor]()
    in_eval_mode(double)

    def note(layer: nn.Module, args: Any, path: str) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor):
            given.setdefault(path, args[0])

    for path in idle:
        layer = double.get_submodule(path)
        if native(layer) is not None:
            layer.register_forward_pre_hook(functools.partial(note, path=path))
    example = seeded_noise(analysis.captured.example, model).map(in_float64)
    try:
        with torch.no_grad(), same_draws(double), in_double():
            double(*example.args, **example.kwargs)
        values = GraphValues(analysis.original.module, example) if given else None
    except Exception:  # whatever the code says of noise
        return {}
    axes = {node.name: own[0] for node, own in analysis.axes.items() if len(own) == 1}
    found: dict[str, Axes] = {}
    for path, x in given.items():
        nodes = [n for n in values.alike(Fingerprint.of(x)) if n.name in axes] if values else []
        if nodes:
            known = _typed_alone(model.get_submodule(path), x, axes[nodes[0].name], analysis)
            found |= {f"{path}.{name}": own for name, own in known.items()}
    return found


def _typed_alone(layer: nn.Module, x: Tensor, axes: Axes, analysis: Analysis) -> Mapping[str, Axes]:
    """Type a layer's weights by the axes of what it is given."""
    options = replace(AnalysisOptions.of(analysis), capture="symbolic")
    alone = nn.Sequential(structural_copy(layer))
    dtype = next((t.dtype for t in layer.parameters()), torch.get_default_dtype())
    try:
        typed = typed_by(alone, Example((x.to(dtype),)), options)
    except FxpruneError:
        return {}
    known: dict[Axis, Axis | None] = {}
    for own in (own for n, all_of in typed.axes.items() if n.op == "placeholder" for own in all_of):
        for a, b in zip(own, axes, strict=False):
            for one, other in _pairs(a, b):
                known[one] = other if known.get(one, other) == other else None
    return {
        name.partition(".")[2]: tuple(_known(axis, known) for axis in typed.weights[there])
        for name, there in typed.names.items()
    }


def _beside(t: Tensor, owner: str, analysis: Analysis) -> Axes:
    """Take, of each size, the one axis that a module's other weights have, or else its values.

    What stands for a patch that is masked is as wide as what stands beside it, though this call masks none.
    Of what each head chooses for itself, a weight that has no heads can keep nothing but all.
    """
    of_heads = {group.atom for group in analysis.groups if group.inside is not None}
    used = {name: there for name, there in analysis.names.items() if name.rpartition(".")[0] == owner}
    weights = [analysis.weights[there] for there in used.values() if there in analysis.weights]
    values = [axes for node, own in analysis.axes.items() if module_of(node) == owner for axes in own]
    out: list[Axis] = []
    for size in t.shape:
        found: set[Axis] = set()
        for known in (weights, values):
            found = found or {axis for axes in known for axis in axes if axis.size == size}
        one = found.pop() if size > 1 and len(found) == 1 else Atom(size)
        out.append(Atom(size) if one in of_heads else one)
    return tuple(out)


def _typed(model: nn.Module, analysis: Analysis, idle: set[str], *, training: bool) -> Mapping[str, Axes]:
    """Type all weights of a capture in which the modules at `idle` have their calls kept."""
    copy = structural_copy(model)
    for path, module in [*copy.named_modules()]:
        if native(module) is not None:
            vars(module)["_is_impure"] = path in idle  # torch.fx keeps the calls of such modules
            continue
        if is_torchs(module):  # an attention, which a capture spells out by its class
            continue
        if training:
            module.__class__ = always_training(type(module))
        if not isinstance(module, _CONTAINERS) and any(is_inside(other, [path]) for other in idle):
            _keep_results(module)
    used, options = analysis.names, replace(AnalysisOptions.of(analysis), capture="symbolic")
    try:
        typed = typed_by(copy, analysis.captured.example, options)
    except FxpruneError:
        return {}
    known: dict[Axis, Axis | None] = {}
    for name, there in typed.names.items():
        for a, b in zip(typed.weights[there], analysis.weights.get(used.get(name, ""), ()), strict=False):
            for x, y in _pairs(a, b):
                known[x] = y if known.get(x, y) == y else None  # the layer joins what the graph keeps apart
    return {
        name: tuple(_known(axis, known) for axis in typed.weights[there])
        for name, there in typed.names.items()
    }


def _keep_results(module: nn.Module) -> None:
    """Let a module hand its results through a layer whose calls stay, whether anyone reads them or not."""
    cls: Any = type(module)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        results = cls.forward(self, *args, **kwargs)
        return pytree.tree_map(lambda t: self.kept(t) if isinstance(t, (Tensor, fx.Proxy)) else t, results)

    kept = nn.Dropout(0.0)
    vars(kept)["_is_impure"] = True
    module.kept = kept
    module.__class__ = subclass_of(cls, {"forward": forward})


def _pairs(a: Axis, b: Axis) -> Iterator[tuple[Axis, Axis]]:
    """Pair an axis with the one that stands for it, and their parts where both are cut alike."""
    if a.size != b.size:
        return
    yield a, b
    if isinstance(a, (Product, Sum)) and type(a) is type(b) and len(a.parts) == len(b.parts):
        for x, y in zip(a.parts, b.parts, strict=True):
            yield from _pairs(x, y)


def _known(axis: Axis, known: Mapping[Axis, Axis | None]) -> Axis:
    """Spell an axis in terms of those in use, or else part by part."""
    found = known.get(axis)
    if found is not None:
        return found
    if isinstance(axis, Product):
        return Product.of(_known(part, known) for part in axis.parts)
    if isinstance(axis, Sum):
        return Sum.of(_known(part, known) for part in axis.parts)
    return axis
