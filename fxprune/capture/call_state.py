"""What a model's code asks beside its arguments: are gradients recorded, what did the last call leave?

A graph answers as the traced call did.  Where another answer makes another graph, the capture is refused.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune.errors import CaptureError
from fxprune.graph.copies import own_buffers, structural_copy
from fxprune.graph.example import Example
from fxprune.graph.process_lock import this_thread_only
from fxprune.graph.source_files import is_users
from fxprune.graph.tensors import cuda_devices_of

__all__ = [
    *("DependsOnCall", "after_a_call", "changed_since", "noticed_gradient_questions", "other_second_call"),
    *("other_without_gradients", "plain_state", "refuse_difference"),
]

State = dict[tuple[str, str], Any]
_PLAIN = (bool, int, float, str, type(None))


class DependsOnCall(CaptureError):
    """No capture holds the model: what it computes depends on more than its arguments."""


@contextlib.contextmanager
def noticed_gradient_questions(lines: dict[str, None]) -> Iterator[None]:
    """Note the lines of a model's code that ask `torch.is_grad_enabled()`, in this thread."""
    original, here = torch.is_grad_enabled, this_thread_only()

    def asked() -> bool:
        caller = sys._getframe(1)
        if here() and is_users(caller.f_code.co_filename):
            lines[f"{caller.f_code.co_filename}:{caller.f_lineno}"] = None
        return original()

    torch.is_grad_enabled = asked
    try:
        yield
    finally:
        torch.is_grad_enabled = original


def plain_state(model: nn.Module) -> State:
    """Return the numbers, flags and words that modules hold, by module and name."""
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) in _PLAIN and name != "training"
    }


@contextlib.contextmanager
def after_a_call(model: nn.Module, example: Example) -> Iterator[list[str]]:
    """Give a model the numbers, flags and words that one call leaves; yields the names of those it changed.

    A model that can't be called here has none.
    """
    called, before = structural_copy(model, own_buffers), plain_state(model)
    drawn = torch.random.fork_rng(devices=cuda_devices_of(model))  # what the call draws is nobody's
    with drawn, contextlib.suppress(Exception), torch.no_grad():  # whatever user code raises
        given = example.map(torch.Tensor.clone)
        called(*given.args, **given.kwargs)
    changed = changed_since(before, called)
    modules = dict(model.named_modules())
    after = plain_state(called)
    try:
        for path, name in before:
            if changed and (path, name) in after:
                setattr(modules[path], name, after[path, name])
        yield changed
    finally:
        for (path, name), value in before.items():
            if changed:
                setattr(modules[path], name, value)


def changed_since(before: Mapping[tuple[str, str], Any], model: nn.Module) -> list[str]:
    """Name the numbers, flags and words that a call changed."""
    after = plain_state(model)
    return [
        f"{path}.{name}".lstrip(".")
        for (path, name), value in before.items()
        if (path, name) in after and (type(value), value) != (type(after[path, name]), after[path, name])
    ]


def other_second_call(changed: Iterable[str]) -> str:
    """Explain that a call changes what the next one computes."""
    return (
        f"its second call computes something else than its first, since its code changes "
        f"{', '.join(changed)}: call the model once before you prune it if that settles it, or prune a "
        f"submodule without that code"
    )


def other_without_gradients(lines: Iterable[str]) -> str:
    """Explain that the code looks whether gradients are recorded."""
    return (
        f"it computes something else where gradients are recorded than where they are not, as its code asks "
        f"at {', '.join(lines)}: decide it when the model is built, or prune a submodule without that code"
    )


def refuse_difference(graph: fx.Graph, other: fx.Graph, why: str) -> None:
    """Raise DependsOnCall if another answer made another graph.

    Graphs of two traces of the same code are spelled alike.
    """
    if str(graph) != str(other):
        raise DependsOnCall(why)
