"""Copy a model's modules and Python state, with other tensors in the places of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.compiler.native.slots import tensors_held
from fxprune.graph.copies import structural_copy
from fxprune.graph.tensors import called_modules, in_float64, named_tensors
from fxprune.result.own_attention import hold_widths
from fxprune.rules.modules import NATIVE, native

# Of every name that a model has for a tensor, and the tensor: what stands in its place.
Resized = Callable[[Sequence[str], Tensor], Tensor]

__all__ = ["Resized", "doubled_copy", "in_double_as", "resized_copy"]


def doubled_copy(model: nn.Module) -> nn.Module:
    """Copy a model in float64, tensors that are plain attributes included."""
    return structural_copy(model, in_double_as)


def in_double_as(t: Tensor) -> Tensor:
    """Copy a tensor in float64 as what it is, a parameter or none; code that runs on it may write to it."""
    made = in_float64(t.detach())
    made = made.clone() if made.dtype == t.dtype else made
    return nn.Parameter(made, requires_grad=False) if isinstance(t, nn.Parameter) else made


def resized_copy(model: nn.Module, resized: Resized, pruned: fx.GraphModule) -> nn.Module:
    """Copy a model's class and state on the tensors that `resized(names, tensor)` gives.

    Those in lists, dicts and objects go by where they lie, `scales[0]`; in nests too deep for that they are
    copied.
    Layers of torch.nn have their own numbers (`in_features`, `groups`, `normalized_shape`) as the pruned
    graph's layer at the same path has them, or as their weights say.
    """
    names: dict[int, list[str]] = {}
    for name, t in _tensor_places(model):
        names.setdefault(id(t), []).append(name)
    made: dict[int, Tensor] = {}

    def placed(t: Tensor) -> Tensor:
        if id(t) not in made:
            made[id(t)] = resized(names[id(t)], t) if id(t) in names else _copied(t)
        return made[id(t)]

    new = structural_copy(model, placed)
    for slot, t in [*tensors_held(model)]:
        if id(t) not in made and not slot.is_shared(model, new):  # in an object: that is copied as it is
            slot.write(new, placed(t))
    for module in new.modules():
        _describe(module)
    for path in called_modules(pruned):
        source = pruned.get_submodule(path)
        try:
            target = new.get_submodule(path)
        except AttributeError:  # a module that capture made
            continue
        if type(target) is type(source):
            _copy_settings(source, target)
    hold_widths(new)
    return new


def _copied(t: Tensor) -> Tensor:
    made = t.detach().clone()
    if isinstance(t, nn.Parameter):
        return nn.Parameter(made, requires_grad=t.requires_grad)
    return made.requires_grad_(t.requires_grad)


def _tensor_places(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """List every parameter, buffer and tensor in plain state by each of its names, saved or not."""
    yield from named_tensors(model)
    held = [*tensors_held(model)]
    of_nests = {id(t): t for slot, t in held if len(slot.keys) > 1}
    for slot, t in held:
        # Of several that are equal, one may be of channels and another one, in a list, of tokens.
        if len(slot.keys) == 1 or not any(o is not t and _is_equal(o, t) for o in of_nests.values()):
            yield str(slot), t


def _is_equal(one: Tensor, other: Tensor) -> bool:
    alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return alike and not one.is_meta and torch.equal(one, other)


def _describe(module: nn.Module) -> None:
    """Set what a layer says of its weights, or a layer of a class that inherits from it."""
    for cls in type(module).__mro__:
        entry = NATIVE.get(cls)
        if entry is not None and getattr(module, "weight", None) is not None:
            for name, width in entry.widths.items():
                if hasattr(module, name) and (size := width.read(module)) is not None:
                    setattr(module, name, size)
            if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                module.normalized_shape = tuple(module.weight.shape)
            return


def _copy_settings(source: nn.Module, target: nn.Module) -> None:
    """Copy the plain attributes of a layer and of those in it."""
    if native(target) is not None:
        for name, value in vars(source).items():
            if not name.startswith("_") and name != "training" and isinstance(value, (int, tuple, list)):
                setattr(target, name, copy.copy(value))
    for name, child in source.named_children():
        inner: Any = target._modules.get(name)
        if isinstance(inner, nn.Module) and type(inner) is type(child):
            _copy_settings(child, inner)
