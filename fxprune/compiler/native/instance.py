"""Make the instance that edits and parts say, on the tensors of a pruned graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.analysis.analysis import Analysis
from fxprune.capture.modes.follow import branches_on_mode
from fxprune.compiler.native.barred import methods_of_mode
from fxprune.compiler.native.flags import flag_of
from fxprune.compiler.native.parts import cut
from fxprune.compiler.native.refusing import call_instead, refuse_doubtful
from fxprune.compiler.native.root_forward import replace_forward
from fxprune.compiler.native.structure import Resized, resized_copy
from fxprune.errors import FileError, UnsupportedModuleError, listed
from fxprune.graph.chunks import taken
from fxprune.graph.classes import is_torchs
from fxprune.graph.nests import Value
from fxprune.graph.tensors import named_tensors
from fxprune.result.forms import attach
from fxprune.result.own_code import Layouts, OwnCode, layouts_of
from fxprune.result.own_spelling import spelled_anew
from fxprune.result.own_tables import beneath_tables, tables_kept
from fxprune.result.pruned_module import PrunedModule
from fxprune.result.selection import Selection
from fxprune.rules.axes import Axis
from fxprune.rules.registry import Axes

__all__ = ["Slices", "instance_of", "with_form"]


def instance_of(model: nn.Module, own: OwnCode, pruned: PrunedModule, slices: Resized) -> nn.Module:
    """Build the instance of a model's class that its pruned graph, edits and parts make.

    slices: the tensor that stands for each of the model's, by name: the graph's own, where it has one.
    """
    made = resized_copy(model, slices, pruned)
    for edit in own.edits:
        edit.slot.write(made, edit.new)
    for path in dict.fromkeys(spelling.path for spelling in own.spellings):
        with beneath_tables(module := made.get_submodule(path)):
            spelled_anew(module, [s.place for s in own.spellings if s.path == path])
    for spelling in own.spellings:
        spelling.write(made)
    for part in own.parts:
        made.set_submodule(part.path, cut(part, made, pruned))
    if own.forward is not None:
        replace_forward(made, own.forward, pruned)
    tables_kept(made, own.tables)
    return made


def with_form(instance: nn.Module, own: OwnCode, pruned: PrunedModule, *, shared: bool = True) -> None:
    """Let an instance carry its graph and the record of how it was made.

    shared: others use the graph too, as parts of it do.
    """
    pruned.record = replace(pruned.record, own=own)
    attach(instance, pruned, shared=shared or not own.is_whole)
    if own.unsaid:
        vars(instance)["save_pretrained"] = partial(_refuse_to_save, own.unsaid)
    for path, flag, value in own.flags:
        instance.get_submodule(path).register_forward_pre_hook(partial(_refuse_other_way, flag, value))
    for way in own.ways:
        refuse = partial(_refuse_other_call, way.numbers, way.calls)
        instance.get_submodule(way.path).register_forward_pre_hook(refuse, with_kwargs=True)
    for path in dict.fromkeys(path for path, _, _ in own.unsure):
        module = instance.get_submodule(path)
        refused = [(name, numbers) for there, name, numbers in own.unsure if there == path]
        cls = type(module).__name__
        call_instead(module, {name: partial(refuse_doubtful, f"{cls}.{name}", n) for name, n in refused})
    if own.untrained:
        for module in instance.modules():
            if module is instance or (branches_on_mode(module) and not is_torchs(module)):
                module.register_forward_pre_hook(partial(_refuse_to_train, own.untrained))
                for name in methods_of_mode(module):
                    vars(module)[name] = partial(_called_in_eval, own.untrained, name, module)


def _refuse_to_save(why: str, *args: Any, **kwargs: Any) -> None:
    """Raise FileError: what its library would save builds another function."""
    raise FileError(f"{why}: its library would build another model from what it saved; use fxprune.save")


def _refuse_to_train(why: str, instance: nn.Module, args: object) -> None:
    """Raise UnsupportedModuleError in train mode: what the code does there is proved wrong, or not right."""
    if instance.training:
        raise UnsupportedModuleError(
            f"{type(instance).__name__} runs other operations in train mode, and {why}: train it in eval "
            "mode (model.eval()), by what it computes there"
        )


def _refuse_other_way(flag: str, value: bool, module: nn.Module, args: object) -> None:
    """Raise UnsupportedModuleError where a flag leads another way, which is wrong on the new sizes."""
    if flag_of(module, flag) is not value:
        raise UnsupportedModuleError(
            f"{type(module).__name__} was pruned with {flag}={value}: on the pruned sizes its code computes "
            f"something else with {flag}={not value}; set it so before pruning"
        )


def _refuse_other_call(
    numbers: str, calls: tuple[Layouts, ...], module: nn.Module, args: Value, kwargs: Value
) -> None:
    """Raise UnsupportedModuleError for a call with other arguments: code may read what no graph proved."""
    try:
        layouts = layouts_of(module, args, kwargs)
    except TypeError:  # the call itself says so
        return
    if layouts not in calls:
        news = [name for name, said in layouts if not any((name, said) in call for call in calls)]
        raise UnsupportedModuleError(
            f"{type(module).__name__} is called with another {listed(news or dict(layouts))} than when it "
            f"was pruned: its code may read {numbers} then, and only the captured call is proved; prune "
            f"again with an example that is called so"
        )


def _called_in_eval(why: str, name: str, module: nn.Module, *args: Value, **kwargs: Value) -> Value:
    """Call a method that looks at the mode, unless that is train mode."""
    _refuse_to_train(why, module, args)
    return getattr(type(module), name)(module, *args, **kwargs)


class Slices:
    """The tensors of a pruned graph by name; of those that it does not use, the slices that its plan says."""

    def __init__(
        self, analysis: Analysis, selection: Selection, unused: Mapping[str, Axes], pruned: PrunedModule
    ) -> None:
        self.analysis, self.selection, self.unused = analysis, selection, unused
        self.tensors = dict(named_tensors(pruned))
        self.model = set(analysis.names.values())  # what the graph calls the model's own

    def __call__(self, names: Sequence[str], t: Tensor) -> Tensor:
        for name in names:
            if name in self.tensors:
                return self.tensors[name]
        axes = self.analysis.weights.get(self.analysis.names.get(names[0], names[0]), ())
        axes = axes or next((self.unused[name] for name in names if name in self.unused), ())
        axes = axes or self._axes_of_constant(t)
        new = taken(t.detach(), [self.selection.positions(axis) for axis in axes])
        return nn.Parameter(new, requires_grad=t.requires_grad) if isinstance(t, nn.Parameter) else new

    def _axes_of_constant(self, t: Tensor) -> Axes:
        """Find the axes of what a plain attribute became in the graph: a constant of the same numbers.

        No axes where several are of the same numbers, and other channels of them are kept.
        """
        graph, found = self.analysis.original.module, list[Axes]()
        for name, held in named_tensors(graph):
            alike = name not in self.model and (held.shape, held.dtype) == (t.shape, t.dtype)
            if alike and not held.is_meta and torch.equal(held, t):
                found.append(self.analysis.weights.get(name, ()))
        if found and len({tuple(map(self._kept, axes)) for axes in found}) == 1:
            return found[0]
        return ()

    def _kept(self, axis: Axis) -> tuple[int, ...] | None:
        kept = self.selection.positions(axis)
        return None if kept is None else tuple(map(int, kept))
