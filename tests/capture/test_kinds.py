"""A mask of truths, one of numbers to add: code that looks which it was given is not run by the result."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from exactness import certified_at
from helpers import assert_same, randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import InputArgumentError

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
TRUTHS = torch.ones(5, 5, dtype=torch.bool).triu(1)
NUMBERS = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """One layer attends under a mask."""

    def __init__(self, attend: Callable[[Net, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.layer = nn.MultiheadAttention(16, 4, batch_first=True)
        self.attend = attend

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.attend(self, self.a(x), mask))


def by_torch(m: Net, x: Tensor, mask: Tensor) -> Tensor:
    attended: Tensor = m.layer(x, x, x, attn_mask=mask)[0]
    return attended


def by_dtype(m: Net, x: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill(mask, -1e9)
    return (x @ x.mT / 4 + mask).softmax(-1) @ x


def by_question(m: Net, x: Tensor, mask: Tensor) -> Tensor:
    mask = mask[None].expand(len(x), -1, -1)
    weights = mask if torch.is_floating_point(mask) else (~mask).to(x.dtype)
    return weights @ x


@pytest.mark.parametrize("attend", [by_torch, by_dtype, by_question])
@pytest.mark.parametrize(("mask", "other"), [(TRUTHS, NUMBERS), (NUMBERS, TRUTHS)], ids=["bool", "float"])
def test_a_mask_of_another_kind_is_refused(
    attend: Callable[[Net, Tensor, Tensor], Tensor], mask: Tensor, other: Tensor, capture: str
) -> None:
    model = randomise(Net(attend).eval())
    (whole,) = certified_at((0.0,), model, (X, mask), capture)
    assert_same(whole(X, mask), model(X, mask), 1e-5)
    with pytest.raises(InputArgumentError, match=r"mask is a tensor of .*captured with one of"):
        whole(X, other)
    with pytest.raises(InputArgumentError, match="mask is a tensor of"):
        torch.jit.trace(whole, (X, other))


def test_another_precision_is_no_other_kind(capture: str) -> None:
    model = randomise(Net(by_dtype).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=(X, NUMBERS), capture=capture)
    doubled = copy.deepcopy(model).double()
    assert_same(whole.double()(X.double(), NUMBERS.double()), doubled(X.double(), NUMBERS.double()), 1e-12)


class Ids(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.long() if x.dtype != torch.int64 else x
        return self.head(self.table(x).relu())


def test_whole_numbers_of_another_length_are_refused_where_code_asks(capture: str) -> None:
    model, x = randomise(Ids().eval()), torch.randint(0, 20, (2, 5))
    whole = fxprune.prune(model, 0.0, example_inputs=x, capture=capture)
    assert_same(whole(x), model(x), 1e-6)
    with pytest.raises(InputArgumentError, match=r"test_kinds.py:\d+ asks for a dtype"):
        whole(x.int())


class Joins(nn.Module):
    """Takes a tensor or several, and makes a table where the input is."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        x = torch.cat(list(x), 0) if isinstance(x, (list, tuple)) else x
        return self.head(self.fc(x)) + torch.arange(3, device=x.device)


@pytest.mark.parametrize("many", [lambda x: [x, x], lambda x: (x,), lambda x: {"x": x}, lambda x: None])
def test_several_tensors_in_the_place_of_one_are_refused_in_words(many: Callable[[Tensor], object]) -> None:
    x = torch.randn(2, 6)
    pruned = fxprune.prune(Joins().eval(), 0.5, example_inputs=x, capture="export")
    with pytest.raises(InputArgumentError, match=r"^x is a \w+: .* with a tensor of real"):
        pruned(many(x))
    assert pruned(x[:1]).shape == (1, 3)
