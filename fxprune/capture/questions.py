"""What a model's code asks of tensors and of torch, and no graph holds: its answers are plain values.

Whether gradients are recorded, which precision a call runs in, and how tensors lie in memory.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capture.devices import TOLD_BY_TENSORS
from fxprune.capture.patched import patch
from fxprune.capture.precisions import AUTOCAST
from fxprune.graph.process_lock import this_thread_only
from fxprune.graph.source_files import is_users

__all__ = ["OF_DEVICE", "OF_GRADIENTS", "OF_LAYOUT", "OF_PRECISION", "Questions", "noticed", "unanswered"]


@dataclass(frozen=True)
class Questions:
    """Names of what is asked of a tensor (attributes, methods) and of torch (functions).

    of_parameters: whether attributes tell something where the tensor is a parameter.
    """

    attributes: tuple[str, ...]
    methods: tuple[str, ...]
    functions: tuple[str, ...]
    of_parameters: bool

    @property
    def calls(self) -> set[str]:
        return {*self.methods, *self.functions}


OF_GRADIENTS = Questions(
    attributes=("requires_grad", "grad_fn", "is_leaf"),
    methods=(),
    functions=("is_grad_enabled",),
    of_parameters=False,
)
_OF_DTYPES = ("is_floating_point", "is_complex", "is_signed")
OF_PRECISION = Questions(
    attributes=("dtype", "itemsize", "nbytes"),
    methods=(*_OF_DTYPES, "element_size", "type"),
    functions=(*_OF_DTYPES, "can_cast", "promote_types", "result_type", *AUTOCAST),
    of_parameters=True,
)

OF_DEVICE = Questions(attributes=TOLD_BY_TENSORS, methods=(), functions=(), of_parameters=True)
OF_LAYOUT = Questions(
    attributes=(),
    methods=("is_contiguous", "stride", "storage_offset", "data_ptr", "dim_order", "_is_view"),
    functions=(),
    of_parameters=False,
)


_OF_VALUES = ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy", "__array__")


@contextlib.contextmanager
def unanswered() -> Iterator[list[Exception]]:
    """Yield the errors that a model's code gets where it asks a tensor for its values, and may go on with."""
    here, errors = this_thread_only(), list[Exception]()

    def asked(of: Callable[..., Any]) -> Callable[..., Any]:
        def ask(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            try:
                return of(tensor, *args, **kwargs)
            except Exception as error:
                if here() and is_users(sys._getframe(1).f_code.co_filename):
                    errors.append(error)
                raise

        return ask

    with contextlib.ExitStack() as patches:
        for name in _OF_VALUES:
            patch(patches, Tensor, name, asked(getattr(Tensor, name)))
        yield errors


@contextlib.contextmanager
def noticed(questions: Questions, lines: dict[str, None]) -> Iterator[None]:
    """Note the lines of a model's code that ask some questions in this thread."""
    here = this_thread_only()

    def note() -> None:
        caller = sys._getframe(2)
        if here() and is_users(caller.f_code.co_filename):
            lines[f"{caller.f_code.co_filename}:{caller.f_lineno}"] = None

    def attribute(of: Any) -> property:
        def get(tensor: Tensor) -> Any:
            if questions.of_parameters or not isinstance(tensor, nn.Parameter):
                note()
            return of.__get__(tensor)

        return property(get, of.__set__)

    def function(of: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            note()
            return of(*args, **kwargs)

        return call

    with contextlib.ExitStack() as patches:
        for name in (*questions.attributes, *questions.methods):
            kind = attribute if name in questions.attributes else function
            patch(patches, Tensor, name, kind(getattr(Tensor, name)))
        for name in questions.functions:
            patch(patches, torch, name, function(getattr(torch, name)))
        yield
