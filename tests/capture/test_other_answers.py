"""What code asks of sizes, ranks, tables and objects that it is given: another answer is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import FxpruneError


class Given:
    """An argument with methods and lists of its own."""

    def __init__(self, scaled: bool = True, levels: int = 2) -> None:
        self.scaled, self.levels = scaled, [torch.ones(1, 5, 8)] * levels

    def is_scaled(self) -> bool:
        return self.scaled

    def get_levels(self) -> list[Tensor]:
        return self.levels


class Masked(Given):
    mask = 2 * torch.ones(2, 5, 1)


def in_a_table(m: Net, x: Tensor) -> Tensor:
    n = x.shape[1]
    x = x.clone()
    x[:, :1] = 0
    if n in m.scales:
        x = x * m.scales[n]
    return x


def by_get(m: Net, x: Tensor) -> Tensor:
    return torch.add(x, 1) * m.scales.get(x.shape[1], 1.0)


def by_a_ratio(m: Net, x: Tensor) -> Tensor:
    return x * m.scales.get(x.shape[1] / 8, 1.0)


def of_one_size(m: Net, x: Tensor, other: Tensor) -> Tensor:
    return x * 2 if x.is_same_size(other) else x + other


def by_a_method(m: Net, x: Tensor, given: Given) -> Tensor:
    return x * 2 if given.is_scaled() else x


def by_levels(m: Net, x: Tensor, given: Given) -> Tensor:
    for level in given.levels:
        x = x + level
    return x


def by_levels_of_a_method(m: Net, x: Tensor, given: Given) -> Tensor:
    for level in given.get_levels():
        x = x + level
    return x


def by_what_it_may_have(m: Net, x: Tensor, given: Given) -> Tensor:
    mask = getattr(given, "mask", None)
    return x if mask is None else x * mask


def by_its_type(m: Net, x: Tensor, keep: float) -> Tensor:
    return x[:, : int(x.shape[1] * keep) if isinstance(keep, float) else keep]


def of_whole_numbers(m: Net, x: Tensor, image: Tensor) -> Tensor:
    image = image.contiguous()
    if not image.is_floating_point():
        image = image.float() / 255
    return x + (image - 0.5) / 0.2


def by_parts(m: Net, x: Tensor) -> Tensor:
    return sum(part.mean(1) for part in x.tensor_split(x.shape[1] // 16, 1))


def in_a_dict(m: Net, x: Tensor, given: dict[str, Tensor]) -> Tensor:
    mask = given["mask"]
    if mask.ndim == 2:
        mask = 3 * mask[:, None]
    return x * mask.transpose(1, 2)


def squeezed(m: Net, x: Tensor) -> Tensor:
    x = x.squeeze(1)
    return x.mean(1) if x.ndim == 3 else x


class Net(nn.Module):
    def __init__(self, code: Callable[..., Tensor]) -> None:
        super().__init__()
        self.fc, self.head, self.code = nn.Linear(8, 8), nn.Linear(8, 4), code
        self.scales = {5: 2.0, 7: 3.0, 1.0: 4.0}

    def forward(self, x: Tensor, *given: Any) -> Tensor:
        return self.head(self.code(self, self.fc(x), *given))


def x(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, 8) * torch.ones(*shape, 1)


ASKED: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...], tuple[Any, ...]]] = {
    "table": (in_a_table, (x(2, 6),), (x(2, 7),)),
    "no table": (in_a_table, (x(2, 7),), (x(2, 6),)),
    "get": (by_get, (x(2, 6),), (x(2, 7),)),
    "ratio": (by_a_ratio, (x(2, 6),), (x(2, 8),)),
    "one size": (of_one_size, (x(2, 5), x(2, 5)), (x(2, 5), x(2, 1))),
    "method": (by_a_method, (x(2, 5), Given()), (x(2, 5), Given(scaled=False))),
    "levels": (by_levels, (x(2, 5), Given()), (x(2, 5), Given(levels=3))),
    "levels of a method": (by_levels_of_a_method, (x(2, 5), Given()), (x(2, 5), Given(levels=3))),
    "may have": (by_what_it_may_have, (x(2, 5), Given()), (x(2, 5), Masked())),
    "its type": (by_its_type, (x(2, 5), 0.5), (x(2, 5), 3)),
    "whole numbers": (of_whole_numbers, (x(2, 5), x(2, 5)), (x(2, 5), x(2, 5).to(torch.uint8))),
    "parts": (by_parts, (x(2, 80),), (x(2, 96),)),
    "dict": (in_a_dict, (x(2, 5), {"mask": x(2, 1)[..., :5]}), (x(2, 5), {"mask": x(2)[..., :5]})),
    "squeezed": (squeezed, (x(2, 1),), (x(2, 2),)),
}


@pytest.mark.parametrize("asked", ASKED)
def test_another_answer_is_right_or_refused(asked: str) -> None:
    code, example, other = ASKED[asked]
    model = randomise(Net(code).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=example, capture="symbolic")
    torch.testing.assert_close(whole(*example), model(*example))
    wanted = model(*other)
    try:
        found = whole(*other)
    except FxpruneError as refused:
        assert "test_other_answers.py" in str(refused) or "was captured with" in str(refused)
    else:
        torch.testing.assert_close(found, wanted)


def test_what_is_added_in_place_has_the_dtype_of_what_it_is_added_to() -> None:
    def added(m: Net, x: Tensor) -> Tensor:
        x += torch.linspace(0, 1, 8)
        return x

    model = randomise(Net(added).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=x(2, 5), capture="symbolic").half()
    torch.testing.assert_close(whole(x(2, 5).half()), model.half()(x(2, 5).half()))


def test_a_region_without_autocast_is_traced_again_as_it_was() -> None:
    """Code that draws is traced more than once."""

    def drawing(m: Net, x: Tensor) -> Tensor:
        random.random()
        with torch.autocast("cuda", enabled=False):
            return x * 2

    model = randomise(Net(drawing).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=x(2, 5), capture="symbolic")
    torch.testing.assert_close(whole(x(3, 5)), model(x(3, 5)))


def test_a_device_that_train_mode_alone_asks_for_is_guarded(capture: str) -> None:
    def asking(m: Net, x: Tensor) -> Tensor:
        return x * 3 if m.training and x.is_cuda else x

    whole = fxprune.prune(randomise(Net(asking).eval()), 0.0, example_inputs=x(2, 5), capture=capture)
    assert "guard_device" in str(whole.graph)
