"""Checks of values, each in a spelling of its own (here, since pytest rewrites the assertions of tests)."""

from __future__ import annotations

import torch
from torch import Tensor


def asserted(x: Tensor) -> None:
    assert not torch.isnan(x).any(), f"nan in {x.shape}, at most {x.max().item()}"


def raised(x: Tensor) -> None:
    if torch.isinf(x).any() or torch.isnan(x).any():
        raise ValueError("long" if len(x) > 3 else "short")


def both(x: Tensor) -> None:
    assert x.ndim == 3 and x.isfinite().all() and -1e6 <= x.sum() <= 1e6


def as_truth(x: Tensor) -> None:
    if not bool((x == x).all()):
        raise RuntimeError


def by_torch(x: Tensor) -> None:
    torch._assert((x == x).all(), "nan")


def of_all(x: Tensor) -> None:
    torch._check_tensor_all(x == x)


def within_no_grad(x: Tensor) -> None:
    with torch.no_grad():
        assert x.abs().amax(-1).max() < 1e6


def of_a_range(x: Tensor) -> None:
    if x.min() < 0 or x.max() > 1:
        raise ValueError("scale images to [0, 1]")


def far_from_zero(x: Tensor) -> None:
    assert x.min() > 4


# ---------------------------------------------------------------- code that may go on


def handled(x: Tensor) -> None:
    try:
        assert x.max() < 0
    except AssertionError:
        x.square()


def one_of_two(x: Tensor) -> None:
    assert x.max() < 1e6 or x.min() > 0


def one_of_a_list(x: Tensor) -> None:
    assert any([x.max() < 1e6, x.min() > 0])


def warned(x: Tensor) -> None:
    if x.max() > 0:
        x.square()


def handled_inside(x: Tensor) -> None:
    if x.max() > 1e6:
        try:
            raise ValueError
        except ValueError:
            x.square()


def at_last(x: Tensor) -> Tensor:
    try:
        assert x.max() < 1e6
    finally:
        return x  # noqa: B012


def handled_by_half(x: Tensor) -> None:
    try:
        assert x.max() < 1e6
    except AssertionError:
        if x.ndim == 3:
            return
        raise


MAY_GO_ON = [handled, one_of_two, one_of_a_list, warned, handled_inside, at_last, handled_by_half]
