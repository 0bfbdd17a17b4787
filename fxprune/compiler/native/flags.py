"""Compare the ways that a module's flags lead: those that give one function in the original, and several now.

A call takes one of them (torch's own attention, or the products spelled out); users switch to the other.
"""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Collection, Iterable, Iterator

import torch
from torch import Tensor, fx, nn

from fxprune.certify.comparison import same_draws
from fxprune.certify.float64 import in_double, in_eval_mode
from fxprune.certify.relative_error import compare
from fxprune.compiler.native.barred import names_reached
from fxprune.compiler.native.fingerprint import TOLERANCE
from fxprune.compiler.native.structure import in_double_as
from fxprune.compiler.native.traits import repeatable
from fxprune.graph.copies import own_buffers, structural_copy
from fxprune.graph.example import Example
from fxprune.graph.tensors import floats_of, holds_attributes, in_float64, on_meta

__all__ = ["Flag", "flag_of", "split_flags"]

Flag = tuple[str, str]  # a module's path, and the attribute ("causal", or of what it holds: "config.causal")


def split_flags(
    model: nn.Module, instance: nn.Module, example: Example, paths: Collection[str]
) -> list[Flag]:
    """List the flags of some modules that change nothing in the original, and do change an instance."""
    if on_meta(model):
        return []
    asked = {path: found for path in paths if (found := [*_flags(model.get_submodule(path))])}
    asked = {p: f for p, f in asked.items() if not isinstance(instance.get_submodule(p), fx.GraphModule)}
    if not asked:
        return []
    given, now = (_given(root, example, asked) for root in (model, instance))
    return [
        (path, flag)
        for path, flags in asked.items()
        if path in given and path in now
        for flag in _telling(instance.get_submodule(path), now[path], flags)
        if not [*_telling(model.get_submodule(path), given[path], [flag])]
    ]


def _flags(module: nn.Module) -> Iterator[str]:
    """Name the switches in a module's own state, and in objects that it holds, that its code asks for."""
    named = names_reached(module)
    for name, value in vars(module).items():
        if name not in named or name == "training":
            continue
        if isinstance(value, bool):
            yield name
        elif holds_attributes(value) and not isinstance(value, nn.Module):
            held = vars(value).items()
            yield from (f"{name}.{key}" for key, flag in held if isinstance(flag, bool) and key in named)


def flag_of(module: nn.Module, flag: str) -> bool:
    """Return how a switch stands."""
    return bool(operator.attrgetter(flag)(module))


def _turn(copied: nn.Module, original: nn.Module, flag: str) -> None:
    """Turn a switch of a copy.  Raises ValueError for one of an object that both share."""
    path, _, name = flag.rpartition(".")
    holder, other = (operator.attrgetter(path)(m) if path else m for m in (copied, original))
    if holder is other:
        raise ValueError(f"{path} is everyone's")
    object.__setattr__(holder, name, not getattr(holder, name))  # frozen ones as well


def _given(root: nn.Module, example: Example, paths: Collection[str]) -> dict[str, Example]:
    """Run a model; return what modules are called with first."""
    copied, found = structural_copy(root, own_buffers), dict[str, Example]()
    in_eval_mode(copied)
    for path in paths:

        def note(m: nn.Module, args: object, kwargs: object, path: str = path) -> None:
            if path not in found:
                found[path] = Example(*repeatable((args, kwargs))).map(Tensor.clone)

        copied.get_submodule(path).register_forward_pre_hook(note, with_kwargs=True)
    given = example.map(Tensor.clone)
    with torch.no_grad(), same_draws(copied), contextlib.suppress(Exception):  # whatever it says of noise
        copied(*given.args, **given.kwargs)
    return found


def _telling(module: nn.Module, given: Example, flags: Iterable[str]) -> Iterator[str]:
    """List the flags with which a module computes something else when they are turned, or nothing at all."""
    as_is = _computed(module, given, None)
    for flag in flags:
        turned = _computed(module, given, flag)
        if as_is is None or turned is None or _differ(as_is, turned):
            yield flag


def _differ(one: list[Tensor], other: list[Tensor]) -> bool:
    alike = [t.shape for t in one] == [t.shape for t in other]
    return not alike or compare(one, other).error > TOLERANCE


def _computed(module: nn.Module, given: Example, turned: str | None) -> list[Tensor] | None:
    """Run a copy in float64, with one of its flags turned; None where its code raises."""
    double = structural_copy(module, in_double_as)
    in_eval_mode(double)
    x = given.map(in_float64).map(Tensor.clone)
    try:
        if turned:
            _turn(double, module, turned)
        with torch.no_grad(), same_draws(double), in_double():
            return floats_of(double(*x.args, **copy.copy(x.kwargs)))
    except Exception:  # whatever its code says of the other way
        return None
