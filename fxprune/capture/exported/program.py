"""Run torch.export with as many sizes left open as the model's code lets it."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.capture.exported.casts import casts_apart
from fxprune.capture.exported.constants import constants_hidden
from fxprune.capture.exported.late_buffers import late_buffers_as_attributes
from fxprune.capture.exported.same_program import same_otherwise
from fxprune.capture.exported.sizes import Relied, blank_of, relied_on
from fxprune.capture.exported.torch_internals import (
    TooLong,
    all_sizes_alike,
    layout_unasked,
    refuse_other_torch,
    users_lines,
)
from fxprune.capture.held_state import HeldState
from fxprune.capture.moved_modules import unmoved_modules
from fxprune.capture.number_types import MATH, AsksForNumber, Sizes, followed, shadowed_numbers, want_shadow
from fxprune.capture.questions import unanswered
from fxprune.capture.texts import numbers_in_texts
from fxprune.errors import CaptureError
from fxprune.graph.example import PRIME_BATCH, Example
from fxprune.graph.tensors import is_float

__all__ = ["Exported", "export_again", "export_program", "parameter_names"]

# Is this dimension's size left open?  Of a tensor, a dimension of it, and the example's batch size.
Is = Callable[[Tensor, int, int | None], bool]

LONGEST = 120  # operations in the sizes of one tensor: beyond, torch takes minutes to compare them


@dataclass(frozen=True)
class Exported:
    """A program, what it was exported with, and which sizes were left open.

    relied: what it is right for.  fixed_batch: it does not take any batch size.  takes_one: it does, and one
    sample as well.
    """

    program: torch.export.ExportedProgram
    example: Example
    is_open: Is
    relied: Relied
    fixed_batch: bool
    takes_one: bool

    @property
    def batches(self) -> str:
        """The batch sizes that it takes, in words: the example's, or all that hold as many frames."""
        batch, blank = self.example.batch or 1, blank_of(self.example)
        most = max(4 * batch, 16)
        taken = [n for n in range(1, most + 1) if self.relied.holds_for(blank.with_batch(n))]
        if len(taken) > 1 and taken == [*range(taken[0], most + 1, taken[0])]:
            return f"multiples of {taken[0]}"
        return (
            "the example's only" if taken == [batch] else "the example's, and others that it does not refuse"
        )


def export_program(model: nn.Module, example: Example) -> Exported:
    """Export for every size that the code takes; with two samples where the example has one.

    Raises whatever the export for the example's own sizes raises.
    """
    refuse_other_torch()
    # A copy, so that `given is example` tells the last way from the others.
    several = example.with_batch(2) if example.batch == 1 else replace(example)
    found: list[Exported] = []
    for given, is_open in (
        (several, lambda t, d, _: t.shape[d] > 1),  # all sizes
        (several, lambda t, d, batch: d == 0 and t.shape[0] == batch),  # the batch size alone
        (example, lambda t, d, _: d > 0 and t.shape[d] > 1),  # all but the batch size
    ):
        if found and given is example and (several.batch == example.batch or not found[0].fixed_batch):
            break
        with contextlib.suppress(Exception, TooLong):  # whatever the export of user code raises
            exported = _for_others_as_well(model, _exported(model, given, is_open))
            if not exported.relied.holds_for(example):
                continue
            if exported.takes_one:
                return exported
            found.append(exported)
    any_batch = [e for e in found if not e.fixed_batch]
    return (any_batch or found or [_exported(model, example, lambda t, d, _: False)])[0]


def _for_others_as_well(model: nn.Module, exported: Exported) -> Exported:
    """Let batch sizes in that the program excludes, but would be right for: one sample, or many."""
    for batch in (1, PRIME_BATCH):
        excluding = exported.relied.excludes(exported.example, batch)
        if not excluding:
            continue
        given = exported.example.with_batch(_alike(exported, batch))
        with contextlib.suppress(Exception, TooLong):
            other = _exported(model, given, _open_beyond_one(exported.is_open))
            relied = exported.relied.or_else(other.relied, exported.example, batch)
            if relied is not None and same_otherwise(exported.program, other.program):
                exported = _judged(replace(exported, relied=relied))
    return exported


def _open_beyond_one(is_open: Is) -> Is:
    return lambda t, d, batch: t.shape[d] > 1 and is_open(t, d, batch)


def _alike(exported: Exported, batch: int) -> int:
    """Return a batch size that is excluded as another is: a small one, but better not one sample."""
    relied, example = exported.relied, exported.example
    sizes = (2, *(1 + (1 << k) for k in range(1, 13)))
    return next((n for n in sizes if relied.excludes(example, n) == relied.excludes(example, batch)), batch)


def export_again(model: nn.Module, exported: Exported, gradients_of_inputs: bool = False) -> Exported:
    """Export for the same sizes in the mode that the model is in now.

    Raises:
        CaptureError: sizes are longer expressions than they were.
    """
    example = exported.example
    if gradients_of_inputs:
        example = example.map(lambda t: t.detach().requires_grad_() if is_float(t) else t)
    try:
        return _exported(model, example, exported.is_open)
    except TooLong:
        raise CaptureError(
            "the sizes of tensors are far longer expressions in this capture than in the first one, and "
            "torch.export compares them for hours: prune with capture='symbolic'"
        ) from None


def parameter_names(model: nn.Module, example: Example) -> list[str]:
    """Return the names of forward's parameters that the example's arguments are for."""
    names = list(inspect.signature(model.forward).parameters)
    return [*names[: len(example.args)], *example.kwargs]


def _exported(model: nn.Module, example: Example, is_open: Is) -> Exported:
    tensors = [t for t in pytree.tree_leaves((example.args, example.kwargs)) if isinstance(t, Tensor)]
    of_sizes = any(is_open(t, d, example.batch) for t in tensors for d in range(1, t.ndim))
    shapes = _shapes(model, example, is_open)
    with (
        late_buffers_as_attributes(model),
        HeldState(model).restored(plain=False, forget=True),
        constants_hidden(model),
    ):
        program = _quietly(model, example, shapes, LONGEST if of_sizes else math.inf)
    relied = relied_on(program, parameter_names(model, example), example)
    return _judged(Exported(program, example, is_open, relied, fixed_batch=True, takes_one=False))


def _judged(exported: Exported) -> Exported:
    blank = blank_of(exported.example)
    any_batch, one = (exported.relied.holds_for(blank.with_batch(n)) for n in (PRIME_BATCH, 1))
    return replace(exported, fixed_batch=not any_batch, takes_one=any_batch and one)


def _shapes(model: nn.Module, example: Example, is_open: Is) -> dict[str, Any]:
    """Choose the dimensions that may be of any size, where the code leaves them so."""

    def sizes_left_open(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        return {
            d: torch.export.Dim.AUTO for d in range(value.ndim) if is_open(value, d, example.batch)
        } or None

    names = list(inspect.signature(model.forward).parameters)
    return {
        **dict(zip(names, pytree.tree_map(sizes_left_open, example.args), strict=False)),
        **pytree.tree_map(sizes_left_open, example.kwargs),
    }


def _quietly(model: nn.Module, example: Example, shapes: Any, longest: float) -> torch.export.ExportedProgram:
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.ERROR)
    namespaces: list[dict[str, Any]] = []
    try:
        with warnings.catch_warnings(), all_sizes_alike():
            warnings.simplefilter("ignore")
            while True:
                fresh = example.map(_fresh)  # export marks what it is given
                try:
                    # Before it raises some errors, it prints the graph so far.
                    with (
                        _followed_numbers(namespaces),
                        layout_unasked(longest),
                        users_lines(),
                        unmoved_modules(),
                        casts_apart(),
                        numbers_in_texts(),
                        contextlib.redirect_stderr(io.StringIO()),
                        unanswered() as errors,
                    ):
                        program = torch.export.export(
                            model, fresh.args, fresh.kwargs, dynamic_shapes=shapes, strict=False
                        )
                    if errors:  # and the model's code went on, on a way of its own
                        raise errors[0]
                    return program
                except AsksForNumber as asked:
                    namespaces.append(asked.namespace)
    finally:
        log.setLevel(level)


def _fresh(t: Tensor) -> Tensor:
    return t.detach().clone(memory_format=torch.contiguous_format).requires_grad_(t.requires_grad)


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return torch.sym_sqrt(*args) if function is math.sqrt else function(*args)


def _length(x: Any) -> Any:
    return x.shape[0] if isinstance(x, Tensor) and x.ndim else len(x)


# `isinstance(n, int)` is false of a size here, as Python itself answers.
_SIZES = Sizes((torch.SymInt, torch.SymFloat), _call, lambda x, of: False, {"len": _length})
_ASKING = (
    *((torch.SymInt, "__int__"), (torch.SymFloat, "__int__"), (torch.SymFloat, "__float__")),
    (Tensor, "__len__"),
)


@contextlib.contextmanager
def _followed_numbers(namespaces: list[dict[str, Any]]) -> Iterator[None]:
    """Replace Python's `int` and `len`, which make a number of a size, in the code that asks."""

    def asking(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def number(x: Any) -> Any:
            want_shadow(sys._getframe(1))
            return original(x)

        return number

    with contextlib.ExitStack() as patches:
        for owner, name in _ASKING:
            patches.callback(setattr, owner, name, vars(owner)[name])
            setattr(owner, name, asking(vars(owner)[name]))
        patches.callback(setattr, math, "sqrt", math.sqrt)
        math.sqrt = followed(MATH["sqrt"], _SIZES)
        patches.enter_context(shadowed_numbers(namespaces, _SIZES))
        yield
