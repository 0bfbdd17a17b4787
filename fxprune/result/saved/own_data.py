"""The instance of a user's own class as JSON data and back: edited numbers, replaced modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fxprune.compiler.native.instance import instance_of, with_form
from fxprune.errors import FileError
from fxprune.graph.tensors import named_tensors
from fxprune.result.own_code import Edit, OwnCode, Part, Read, Ref, Slot
from fxprune.result.pruned_module import PrunedModule

__all__ = ["OWN", "own_data", "own_from", "own_instance"]

OWN = "own:"  # before the names of tensors that the instance has and its graph does not use


def own_data(own: OwnCode) -> dict[str, object]:
    """Write an own class's record down as plain lists, words and numbers."""
    return {
        "unsaid": own.unsaid,
        "edits": [[e.slot.path, list(e.slot.keys), e.slot.held, e.old, e.new] for e in own.edits],
        "parts": [
            {
                "path": part.path,
                "why": part.why,
                "inputs": [[name, list(keys), node] for name, keys, node in part.inputs],
                "reads": [[r.node, r.of, r.what, r.dim] for r in part.reads],
                "result": _spelled(part.result),
            }
            for part in own.parts
        ],
    }


def own_from(data: Any) -> OwnCode:
    """Read what `own_data` wrote down.  Raises FileError for anything else."""
    try:
        edits = [
            Edit(Slot(path, tuple(keys), held), old, new) for path, keys, held, old, new in data["edits"]
        ]
        parts = [
            Part(
                part["path"],
                part["why"],
                tuple((name, tuple(keys), node) for name, keys, node in part["inputs"]),
                tuple(Read(*read) for read in part["reads"]),
                _read(part["result"]),
            )
            for part in data["parts"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"the record of the model's own class can't be read: {error}") from error
    return OwnCode(tuple(edits), tuple(parts), str(data.get("unsaid", "")))


def own_instance(
    model: nn.Module, pruned: PrunedModule, own: OwnCode, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """Build the instance of a model's class again, on a graph's tensors and those that it does not use.

    Raises:
        FileError: the record speaks of numbers or modules that the model has not.
    """
    known = dict(named_tensors(pruned))

    def slices(names: Sequence[str], t: Tensor) -> Tensor:
        for name in names:
            if name in known:
                return known[name]
            if name in tensors:
                stored = tensors[name]
                return nn.Parameter(stored, t.requires_grad) if isinstance(t, nn.Parameter) else stored
        return t

    try:
        made = instance_of(model, own, pruned, slices)
        with_form(made, own, pruned)
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise FileError(f"the record of the model's own class does not fit the model: {error}") from error
    return made


def _spelled(value: object) -> dict[str, object]:
    if isinstance(value, Ref):
        return {"node": value.node}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_spelled(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": {k: _spelled(v) for k, v in value.items()}}
    return {"value": value}


def _read(data: Mapping[str, Any]) -> Any:
    ((kind, value),) = data.items()
    if kind == "node":
        return Ref(value)
    if kind in ("list", "tuple"):
        items = [_read(v) for v in value]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        return {k: _read(v) for k, v in value.items()}
    return value
