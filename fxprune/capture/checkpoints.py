"""Notice that a model computes parts of itself again in the backward pass (`torch.utils.checkpoint`).

A graph holds what is computed, and not when: the result keeps every activation, which its user is told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils import checkpoint as library

__all__ = ["CHECKPOINTS", "noticed_checkpoints"]

CHECKPOINTS = (
    "gradient checkpointing of the model (torch.utils.checkpoint) is not in the result: it computes the "
    "same, and keeps all activations for the backward pass"
)
# What `checkpoint` calls, by either way, wherever the model has its name from.
_CALLED = (
    "_checkpoint_without_reentrant_generator",
    "_checkpoint_without_reentrant_generator_impl",
    "CheckpointFunction",
)


class _Noticing:
    """A stand-in for a function or class of the library, which notes that it is used."""

    def __init__(self, real: Any, seen: list[str]) -> None:
        self.real, self.seen = real, seen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.append("called")
        return self.real(*args, **kwargs)

    @property
    def apply(self) -> Callable[..., Any]:
        self.seen.append("applied")
        apply: Callable[..., Any] = self.real.apply
        return apply


@contextlib.contextmanager
def noticed_checkpoints() -> Iterator[list[str]]:
    """Yield a list that gets an entry for each checkpoint computed meanwhile; one capture at a time."""
    seen: list[str] = []
    real = {name: getattr(library, name) for name in _CALLED if hasattr(library, name)}
    for name, what in real.items():
        setattr(library, name, _Noticing(what, seen))
    try:
        yield seen
    finally:
        for name, what in real.items():
            setattr(library, name, what)
