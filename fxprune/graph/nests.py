"""Walk nests of lists, tuples and dicts: arguments and results of calls, and what stands for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import torch

__all__ = ["PLAIN", "Value", "leaves", "map_leaves", "outline", "placed_leaves"]

# What a model's call takes or returns, or a nest of what stands for it: neither torch nor torch.fx types it.
Value: TypeAlias = Any

# Kinds of leaf that are compared, kept and written down as they are.
PLAIN = (bool, int, float, str, type(None))

T = TypeVar("T")
S = TypeVar("S")


def leaves(value: object, kind: type[T] | tuple[type[T], ...]) -> Iterator[T]:
    """Find every leaf of one kind (or of several), in order.  A leaf of the kind is not walked into.

    >>> list(leaves([1, {"a": (2, "x")}], int))
    [1, 2]
    """
    if isinstance(value, kind):
        yield value
    elif isinstance(value, dict):
        yield from leaves(list(value.values()), kind)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item, kind)


def placed_leaves(
    value: object, kind: type[T] | tuple[type[T], ...], keys: tuple[Value, ...] = ()
) -> Iterator[tuple[tuple[Value, ...], T]]:
    """Find every leaf of one kind (or of several), in order, with the keys and indices that lead to it.

    >>> list(placed_leaves([1, {"a": (2, "x")}], int))
    [((0,), 1), ((1, 'a', 0), 2)]
    """
    if isinstance(value, kind):
        yield keys, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from placed_leaves(item, kind, (*keys, key))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from placed_leaves(item, kind, (*keys, i))


def outline(value: object, kind: type[T], function: Callable[[T], S]) -> Value:
    """Make a nest of lists and dicts: a function of each leaf of one kind, and None for all others.

    >>> outline((1, {"a": "x", "b": [2]}), int, float)
    [1.0, {'a': None, 'b': [2.0]}]
    """
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {k: outline(v, kind, function) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [outline(v, kind, function) for v in value]
    return None


def map_leaves(value: Value, kind: type[T] | tuple[type[T], ...], function: Callable[[T], object]) -> Value:
    """Replace each leaf of one kind (or of several), in order, in the same containers.

    A shape is no nest, and a dict of a class of its own is left as it is.

    >>> map_leaves((1, {"a": "x"}), int, float)
    (1.0, {'a': 'x'})
    """
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        items = [map_leaves(v, kind, function) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if type(value) is dict:
        return {k: map_leaves(v, kind, function) for k, v in value.items()}
    return value
