"""Find the numbers of a configuration that its constructor computes of others: no code may ever read them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence

from torch import nn

from fxprune.graph.nests import Value
from fxprune.result.own_code import Edit, Keys, Slot

__all__ = ["computed_numbers", "read_number"]


def computed_numbers(model: nn.Module, instance: nn.Module, slots: Sequence[Slot]) -> list[Edit]:
    """List what the constructors of an instance's configuration make of its numbers now.

    slots: numbers that nothing has edited.  One that the constructor gives of the original's other arguments
        is what it gives of the instance's: it is no argument, or one that may be left out.
    """
    edits = (_computed(model, instance, slot) for slot in slots if slot.held > 1)
    return [edit for edit in edits if edit is not None]


def read_number(root: nn.Module | None, slot: Slot) -> int | None:
    """Get the number at a place of a model, None where there is none."""
    try:
        found = None if root is None else slot.read(root)
    except (AttributeError, KeyError, IndexError, TypeError):  # other modules, shorter lists
        return None
    return found if type(found) is int else None


def _computed(model: nn.Module, instance: nn.Module, slot: Slot) -> Edit | None:
    outer, inner = slot.keys[: slot.held - 1], slot.keys[slot.held - 1 :]
    old = slot.read(model)
    before, now = (
        _read(_built_without(inner[0], _at(root, outer)), inner) for root in (vars(model), vars(instance))
    )
    return Edit(slot, old, now) if before == old and type(now) is int and now != old else None


def _at(root: Value, keys: Keys) -> Value:
    for key in keys:
        inside: Value = root if isinstance(root, (dict, list, tuple)) else vars(root)
        root = inside[key]
    return root


def _read(holder: Value, keys: Keys) -> Value:
    """Get what stands at a place, None where there is no such place."""
    try:
        return _at(holder, keys)
    except (KeyError, IndexError, TypeError):
        return None


def _built_without(name: str | int, holder: Value) -> Value:
    """Call an object's constructor with the arguments that it keeps, but one; None where that raises."""
    try:
        named = inspect.signature(type(holder)).parameters.values()
        kept = {p.name for p in named if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} - {name}
        given = {key: value for key, value in vars(holder).items() if key in kept}
        return type(holder)(**copy.deepcopy(given))  # it may write to what it is given, or keep it
    except Exception:  # whatever a constructor says
        return None
