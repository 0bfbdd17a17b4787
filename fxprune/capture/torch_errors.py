"""What an error of torch's means: by its type, and by its words only where it has no type of its own."""

from __future__ import annotations

from collections.abc import Iterator

from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from fxprune.graph.values import DependsOnValues

__all__ = ["asks_values", "fakes_can_not"]

_OF_VALUES = (DependsOnValues, GuardOnDataDependentSymNode, DataDependentOutputException)
_OF_FAKES = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
_REFUSES_FAKES = "not supported for tensor subclasses"  # what `numpy()` and `tolist()` say of them


def asks_values(error: BaseException) -> bool:
    """Does code ask for a tensor's values, which nothing but a call has?"""
    return any(isinstance(cause, _OF_VALUES) for cause in _causes(error))


def fakes_can_not(error: BaseException) -> bool:
    """Is it fake tensors that can't do what is asked, where real ones may?"""
    return isinstance(error, _OF_FAKES) or _REFUSES_FAKES in str(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
