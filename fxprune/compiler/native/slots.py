"""Find the numbers that a module's code may read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from fxprune.graph.tensors import holds_attributes
from fxprune.result.own_code import Slot
from fxprune.result.own_tables import TABLES
from fxprune.result.pruned_module import FORM
from fxprune.rules.modules import native

__all__ = ["holders_of", "own_slots_of", "slots_of", "tensors_held"]

_DEPTH = 4  # lists in dicts in objects: deeper nests hold data, not sizes
_LENGTH = 256  # longer lists hold data
_COPYING = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__", "__new__")
# torch.nn.Module's own state, and ours.
_NOT_THE_USERS = frozenset(vars(nn.Module())) | {FORM, TABLES}


def slots_of(root: nn.Module) -> dict[str, list[tuple[Slot, int]]]:
    """Find every whole number above one in each module's own state, in its lists, dicts and objects too.

    What several modules hold (a configuration, but no tuple) goes by the first of them.  Layers of torch.nn
    have none (their numbers are those of their weights), unless they have no weights.
    """
    seen: set[int] = set()
    found: dict[str, list[tuple[Slot, int]]] = {}
    for path, module in root.named_modules():
        own = found.setdefault(path, [])
        for name, value in _state(module):
            own += [(Slot(path, keys, held), n) for keys, held, n in _numbers(value, (name,), 1, seen)]
    return found


def own_slots_of(root: nn.Module, copy: nn.Module) -> dict[str, list[tuple[Slot, int]]]:
    """Find the numbers that a copy of a model holds apart from it: what both share is others' as well."""
    classes = {path: type(module) for path, module in root.named_modules()}
    copied = dict(copy.named_modules())
    return {
        path: [(slot, n) for slot, n in own if not slot.is_shared(root, copy)]
        for path, own in slots_of(root).items()
        if isinstance(copied.get(path), classes[path])  # else a part of the graph stands there
    }


def holders_of(root: nn.Module) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """Find every object that slots lie in: (the module's path, keys to it, the object)."""
    seen: set[int] = set()
    for path, module in root.named_modules():
        if _has_numbers(module):
            yield path, (), module
            for name, value in _state(module):
                for keys, holder in _objects(value, (name,), seen):
                    yield path, keys, holder


def tensors_held(root: nn.Module) -> Iterator[tuple[Slot, Tensor]]:
    """Find the tensors that modules hold as plain attributes, and in their lists, dicts and objects."""
    seen: set[int] = set()
    for path, module in root.named_modules():
        for name, value in vars(module).items():
            if name not in _NOT_THE_USERS:
                yield from ((Slot(path, keys), t) for keys, t in _tensors(value, (name,), seen))


def _tensors(value: Any, keys: tuple[Any, ...], seen: set[int]) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    if isinstance(value, Tensor):
        yield keys, value
    for key, inner, _ in _items(value, keys, seen):
        yield from _tensors(inner, (*keys, key), seen)


def _has_numbers(module: nn.Module) -> bool:
    known = native(module)
    return known is None or ("weight" in known.arguments and getattr(module, "weight", None) is None)


def _state(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """List a module's own state: what holds no objects, where it says itself how it is copied.

    Those may be of a cache then that others are given as well, and are not kept in a copy.
    """
    if not _has_numbers(module):
        return
    usual = not _says_how_copied(type(module))
    for name, value in vars(module).items():
        if name not in _NOT_THE_USERS and (usual or not any(_objects(value, (name,), set()))):
            yield name, value


def _says_how_copied(cls: type) -> bool:
    """Does the code of a class, of modules or others, say itself how its instances are copied?"""
    base = nn.Module if issubclass(cls, nn.Module) else object
    found = [getattr(cls, name, None) for name in _COPYING]
    usual = [getattr(base, name, None) for name in _COPYING]
    return any(type(f) is FunctionType and f is not g for f, g in zip(found, usual, strict=True))


def _numbers(
    value: Any, keys: tuple[Any, ...], held: int, seen: set[int]
) -> Iterator[tuple[tuple[Any, ...], int, int]]:
    if type(value) is int:
        if value > 1:
            yield keys, held, value
        return
    for key, inner, is_object in _items(value, keys, seen):
        longer = (*keys, key)
        yield from _numbers(inner, longer, len(longer) if is_object else held, seen)


def _objects(value: Any, keys: tuple[Any, ...], seen: set[int]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if holds_attributes(value) and id(value) not in seen:
        yield keys, value
    for key, inner, _ in _items(value, keys, seen):
        yield from _objects(inner, (*keys, key), seen)


def _items(value: Any, keys: tuple[Any, ...], seen: set[int]) -> Iterable[tuple[Any, Any, bool]]:
    """List what a nest holds: (key, value, whether the nest is an object with attributes); each nest once.

    An object that says itself how it is copied may be everyone's.
    """
    if len(keys) > _DEPTH or isinstance(value, (str, bytes, type, Tensor, nn.Module)):
        return
    is_object = holds_attributes(value) and not _says_how_copied(type(value))
    if isinstance(value, dict):
        items = [*value.items()]
    elif isinstance(value, (list, tuple)):
        items = [*enumerate(value)]
    elif is_object:
        items = [*vars(value).items()]
    else:
        return
    # A tuple is made anew where a number in it is another one: each module that holds it has its own.
    if (id(value) in seen and not isinstance(value, tuple)) or len(items) > _LENGTH:
        return
    seen.add(id(value))
    yield from ((key, inner, is_object) for key, inner in items if isinstance(key, (str, int)))
