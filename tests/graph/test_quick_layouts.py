"""Layouts known without a fake run are those that torch gives; what picks elements is left to it."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fxprune.graph.nests import leaves
from fxprune.graph.quick_layouts import quick_layout

aten = torch.ops.aten
LAYOUTS: list[tuple[Any, tuple[Any, ...]]] = [
    *(("permute", dims) for dims in [(2, 0, 3, 1), ((0, -1, 1, 2),), ([3, 2, 1, 0],)]),
    (torch.permute, ((0, 2, 1, 3),)),
    (aten.permute.default, ([1, 0, 2, 3],)),
    *(("transpose", (1, 2)), (torch.transpose, (-1, -2)), (aten.transpose.int, (0, 1)), ("swapaxes", (0, 3))),
    *(("unbind", ()), ("unbind", (2,)), (torch.unbind, (1,)), ("chunk", (3, 1)), (torch.split, (2, 3))),
    *(("split", ([1, 5], 3)), (aten.split.Tensor, (2, -1)), (aten.slice.Tensor, (1, 1, 3, 2))),
    *(("flatten", ()), ("flatten", (1, 2)), ("flatten", (2,)), (torch.flatten, (0, 1))),
    *(("unsqueeze", (-1,)), ("squeeze", ()), ("squeeze", (1,)), ("unflatten", (3, (2, -1)))),
    *(("expand", (5, -1, -1, -1, -1)), ("movedim", (0, -1)), ("select", (1, -1)), ("narrow", (1, 1, 2))),
    *(("contiguous", ()), ("contiguous", (), {"memory_format": torch.channels_last}), ("clone", ())),
    *(
        ("reshape", (2, -1)),
        ("reshape", (torch.Size([24, 6]),)),
        ("view", (2, 3, 4, 2, 3)),
        ("repeat", (1, 2, 1, 1)),
    ),
    *((operator.getitem, (index,)) for index in (0, (..., None, 2), slice(None, None, 2), (slice(1), -1))),
]
TENSORS = {
    "dense": torch.zeros(2, 3, 4, 6),
    "channels last": torch.zeros(2, 4, 6, 3).permute(0, 3, 1, 2),
    "transposed": torch.zeros(4, 2, 6, 3, dtype=torch.int64).permute(1, 3, 0, 2),
    "expanded": torch.zeros(2, 1, 4, 6, dtype=torch.bool).expand(2, 3, 4, 6),
}


def named(given: tuple[Any, ...]) -> str:
    """Name an instance alike in every process: no address of a function."""
    return f"{getattr(given[0], '__name__', given[0])} {given[1:]}"


def outlined(op: Any, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with FakeTensorMode() as mode, torch.no_grad():
        return quick_layout(op, (mode.from_tensor(tensor), *args), kwargs)


@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize("given", LAYOUTS, ids=named)
def test_as_torch_does(given: tuple[Any, ...], tensor: str) -> None:
    op, args, kwargs = (*given, {})[:3]
    x = TENSORS[tensor]
    try:
        wanted = getattr(x, op)(*args, **kwargs) if isinstance(op, str) else op(x, *args, **kwargs)
    except RuntimeError:  # a view that the strides don't allow: refused in torch's words
        with pytest.raises(RuntimeError):
            outlined(op, x, args, kwargs)
        return
    got = outlined(op, x, args, kwargs)
    assert isinstance(got, Tensor) == isinstance(wanted, Tensor)
    facts = [[(t.shape, t.stride(), t.dtype) for t in leaves(value, Tensor)] for value in (got, wanted)]
    assert facts[0] == facts[1]


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 1, 2, 2), (0, 1, 2, 4)])
def test_no_permutation_is_refused_by_torch(order: tuple[int, ...]) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        outlined("permute", TENSORS["dense"], order, {})


@pytest.mark.parametrize(
    ("op", "args"),
    [
        *(
            (operator.getitem, (index,))
            for index in ([0, 1], torch.tensor([0]), True, (0, [1]), slice(torch.tensor(1)))
        ),
        *(
            ("view", (torch.int32, torch.tensor(1))),
            ("view_as", (torch.zeros(6, 24),)),
            ("add", (1,)),
            ("flip", (0,)),
        ),
    ],
)
def test_what_picks_elements_or_computes_is_left_to_torch(op: Any, args: tuple[Any, ...]) -> None:
    assert outlined(op, TENSORS["dense"], args, {}) is None


def test_only_fake_tensors_of_real_numbers_are_laid_out() -> None:
    assert quick_layout("flatten", (torch.zeros(2, 3),), {}) is None
    assert outlined("flatten", torch.zeros(2, 3, dtype=torch.complex64), (), {}) is None
    assert quick_layout("flatten", (), {}) is None
