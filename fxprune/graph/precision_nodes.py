"""Nodes about precisions: guards of what code asks of dtypes, their limits, parts without autocast.

As guards, they keep their names for ever.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import torch

from fxprune.errors import InputArgumentError
from fxprune.graph.guards import guard, one_node, with_effect

__all__ = [
    *("autocast_back", "autocast_off", "dtype_limit", "guard_dtype", "guard_precision", "precision_of"),
    "autocast_as_before",
    "precisions_unguarded",
]


def _is_answer(value: Any, expected: Any) -> bool:
    return _UNGUARDED.precisions or bool(value == expected)


class _Unguarded:
    precisions = False


_UNGUARDED = _Unguarded()


@contextlib.contextmanager
def precisions_unguarded() -> Iterator[None]:
    """Run graphs in another precision than they were captured in, to compare them with one another."""
    before, _UNGUARDED.precisions = _UNGUARDED.precisions, True
    try:
        yield
    finally:
        _UNGUARDED.precisions = before


@functools.partial(guard, same=_is_answer)
def guard_dtype(value: Any, expected: Any, *, where: str) -> Exception:
    """Refuse a dtype, or autocast, of which the traced model's code would have had another answer."""
    return InputArgumentError(
        f"the model's code at {where} asks for a dtype, or for autocast, and takes another way here than for "
        f"the example: {_IN_THIS_PRECISION}"
    )


def _is_among(value: Any, allowed: Any) -> bool:
    return _UNGUARDED.precisions or any(value == each for each in allowed)


@functools.partial(guard, same=_is_among)
def guard_precision(value: Any, allowed: Any, *, where: str) -> Exception:
    """Refuse a precision for which the model's code computes something else than was captured."""
    inputs, weights, autocast = value
    said = [f"inputs of {inputs}"] if inputs is not None else []
    said += [f"weights of {weights}"] if weights is not None else []
    said += [f"autocast to {autocast}"] if autocast is not None else []
    return InputArgumentError(
        f"{', '.join(said)}: the model's code at {where} asks for the precision, and the captured graph "
        f"holds for another only: {_IN_THIS_PRECISION}"
    )


_IN_THIS_PRECISION = (
    "prune the model in this precision, with example inputs of it, or with form='module', which keeps the "
    "model's code"
)


@one_node
def precision_of(
    inputs: torch.dtype | None, weights: torch.dtype | None, device: torch.device | None
) -> tuple[torch.dtype | None, torch.dtype | None, torch.dtype | None]:
    """Return the dtypes of inputs and of weights, and that to which autocast casts, if it does."""
    if device is None or not torch.is_autocast_enabled(device.type):
        return inputs, weights, None
    return inputs, weights, torch.get_autocast_dtype(device.type)


@one_node
def dtype_limit(dtype: torch.dtype, name: str) -> float:
    """Return a limit of the numbers of a dtype, `max` or `eps` say."""
    limits = torch.finfo(dtype) if dtype.is_floating_point or dtype.is_complex else torch.iinfo(dtype)
    found: float = getattr(limits, name)
    return found


@with_effect
def autocast_off(device: torch.device) -> Any:
    """Turn autocast off on a device, as the model's code does here.  Returns what `autocast_back` is given.

    (torch.autocast counts how deep it is: it would count wrong after an error in between.)
    """
    if not torch.is_autocast_enabled(device.type):
        return None
    if torch.compiler.is_compiling():
        return torch.amp.autocast_mode._enter_autocast(device.type, None, False, None)  # type: ignore[no-untyped-call]
    torch.set_autocast_enabled(device.type, False)
    _TURNED.off.append(device.type)
    return True


@with_effect
def autocast_back(before: Any, device: torch.device) -> None:
    """Turn autocast on again where it was."""
    if before is None:
        return
    if torch.compiler.is_compiling():
        torch.amp.autocast_mode._exit_autocast(before)  # type: ignore[no-untyped-call]
    else:
        torch.set_autocast_enabled(device.type, True)
        if _TURNED.off:
            _TURNED.off.pop()


class _Turned(threading.local):
    """The kinds of devices on which graphs that run have turned autocast off, in each thread."""

    def __init__(self) -> None:
        self.off: list[str] = []


_TURNED = _Turned()


@contextlib.contextmanager
def autocast_as_before() -> Iterator[None]:
    """Turn autocast on again, where an error leaves a graph in a part without it."""
    depth = len(_TURNED.off)
    try:
        yield
    except BaseException:
        while len(_TURNED.off) > depth:
            torch.set_autocast_enabled(_TURNED.off.pop(), True)
        raise
