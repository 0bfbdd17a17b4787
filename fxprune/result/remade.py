"""Values that a model's own code puts on its modules after they are built: tables made anew for other sizes.

What a capture sees follows from them (`if self.table.shape[0] != n: self.table = ..`), what the model
computes does not.  A result remembers them, so that its original can be seen again as it was then.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fxprune.capture.beside_model import gives_the_same
from fxprune.graph.code_names import codes_in, names_of, plain_functions, steps_of
from fxprune.graph.copies import structural_copy
from fxprune.graph.example import Example
from fxprune.graph.nests import PLAIN, Value
from fxprune.graph.source_files import is_users
from fxprune.graph.tensors import device_of
from fxprune.result.json_types import dtype_named, json_object

__all__ = ["as_it_was", "remade_data", "remade_from", "remade_values", "with_remade", "with_values"]

_LARGEST = 1 << 20  # elements of a tensor that is remembered
_WRITTEN = 1 << 12  # and of one whose numbers are written


def remade_values(model: nn.Module) -> dict[str, Value]:
    """Return what modules hold under names that their methods assign: tensors and plain values, by path."""
    found: dict[str, Value] = {}
    for path, module in model.named_modules():
        cls: Value = type(module)
        for name in _assigned_by(cls):
            value = module._buffers.get(name, vars(module).get(name, ...))
            if isinstance(value, PLAIN) or (_is_held(value) and value.numel() <= _LARGEST):
                found[f"{path}.{name}".lstrip(".")] = value.detach() if isinstance(value, Tensor) else value
    return found


def with_remade(model: nn.Module, values: Mapping[str, Value]) -> nn.Module | None:
    """Return a copy of a model that holds these values again; None where it does already.

    Only names that its methods assign are put back.
    """
    now = remade_values(model)
    other = {
        name: value
        for name, value in values.items()
        if (not _same(now[name], value) if name in now else _is_made_later(model, name))
    }
    if not other:
        return None
    copy, device = structural_copy(model), device_of(model)
    for name, value in other.items():
        path, _, leaf = name.rpartition(".")
        module = copy.get_submodule(path)
        if isinstance(value, Tensor):
            like = now[name] if isinstance(now.get(name), Tensor) else value.to(device)
            value = value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)
        held = module._buffers if leaf in module._buffers else vars(module)
        held[leaf] = value
    return copy


def _is_made_later(model: nn.Module, name: str) -> bool:
    """Will a module have what it lacks now, by a method that assigns it?"""
    path, _, leaf = name.rpartition(".")
    module = dict(model.named_modules()).get(path)
    cls: Value = type(module)
    return module is not None and leaf in _assigned_by(cls) and not hasattr(module, leaf)


def as_it_was(model: nn.Module, values: Mapping[str, Value], example: Example) -> nn.Module:
    """Return a copy of a model with the values that it had, if it computes the same; else itself."""
    before = with_remade(model, values)
    return before if before is not None and gives_the_same(model, before, example) else model


def remade_data(values: Mapping[str, Value]) -> dict[str, object]:
    """Write values as data: plain ones and small tensors as they are, of others what they look like."""
    return {name: _tensor_data(v) if isinstance(v, Tensor) else {"value": v} for name, v in values.items()}


def _tensor_data(value: Tensor) -> dict[str, object]:
    about: dict[str, object] = {"shape": [*value.shape], "dtype": str(value.dtype).removeprefix("torch.")}
    small = value.numel() <= _WRITTEN and not value.is_meta and not value.is_complex()
    if small and bool(value.isfinite().all()):
        return about | {"values": value.flatten().tolist()}
    return about


def remade_from(data: Mapping[str, object], device: torch.device) -> dict[str, Value]:
    """Read such data; where a tensor's numbers are not in it, zeros: a capture looks at shapes."""
    found: dict[str, Value] = {}
    for name, entry in data.items():
        about: dict[str, Value] = json_object(entry)
        if "shape" in about and torch.Size(about["shape"]).numel() <= _LARGEST:
            dtype = dtype_named(about["dtype"])
            held = torch.zeros(about["shape"], dtype=dtype)
            if "values" in about:
                held = torch.tensor(about["values"], dtype=dtype).reshape(about["shape"])
            found[name] = held.to(device)
        elif isinstance(about.get("value", ...), PLAIN):
            found[name] = about["value"]
    return found


def with_values(data: Mapping[str, object], tensors: Mapping[str, Tensor]) -> dict[str, Value]:
    """Read such data beside the tensors of a folder; one whose numbers are in neither is left out."""
    found = remade_from(data, torch.device("cpu"))
    known = {name: t for name, t in tensors.items() if _looks(t) == _looks(found.get(name))}
    whole = {name for name, v in found.items() if isinstance(v, PLAIN) or "values" in json_object(data[name])}
    return {name: known.get(name, v) for name, v in found.items() if name in whole or name in known}


def _looks(value: Value) -> object:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else None


def _is_held(value: Value) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter)


def _same(now: Value, before: Value) -> bool:
    if isinstance(now, Tensor) and isinstance(before, Tensor):
        alike = now is before or (now.shape == before.shape and now.dtype == before.dtype)
        return alike and (now is before or now.is_meta or before.is_meta or _equal(now, before))
    return type(now) is type(before) and bool(now == before or now != now)


def _equal(now: Tensor, before: Tensor) -> bool:
    return torch.equal(now, before.to(now.device))


@functools.lru_cache(maxsize=4096)
def _assigned_by(cls: Value) -> frozenset[str]:
    """Return the names of attributes that a class's methods assign, but its constructor."""
    members = (item for base in cls.__mro__ for item in vars(base).items())
    found = {
        name
        for member, value in members
        if member != "__init__"
        for function in plain_functions(value)
        if is_users(function.__code__.co_filename)
        for code in codes_in(function.__code__)
        for name in _assigned_in(code)
    }
    return frozenset(found - {"training"})


def _assigned_in(code: types.CodeType) -> Iterator[str]:
    yield from (step.argval for _, step in steps_of(code) if step.opname == "STORE_ATTR")
    if not names_of(code).isdisjoint({"register_buffer", "setattr"}):
        yield from (value for value in code.co_consts if isinstance(value, str) and value.isidentifier())
