"""Habits of other people's models, whole: what they half and what they leave, through both captures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import assert_exact
from helpers import CAPTURES, randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError


def pruned_half(model: nn.Module, x: Tensor, capture: str) -> nn.Module:
    """The result at a half: exact, at other batch sizes, and it learns."""
    model = randomise(model.eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    assert_exact(model, pruned, 1, 3)
    pruned.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())
    return pruned


# ---------------------------------------------------------------- a weight's dtype is read


class Casts(nn.Module):
    """A residual block whose activations are cast as some weight is."""

    def __init__(self, cast: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inp, self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 40), nn.Linear(40, 16)
        self.out, self.cast = nn.Linear(16, 6), cast

    def forward(self, x: Tensor) -> Tensor:
        x = self.cast(self, self.inp(x))
        return self.out(x + self.down(self.up(x).relu()))


CASTS: dict[str, Callable[..., Tensor]] = {
    "to dtype": lambda m, x: x.to(m.up.weight.dtype),
    "to dtype and device": lambda m, x: x.to(device=m.up.weight.device, dtype=m.up.weight.dtype),
    "type": lambda m, x: x.type(m.down.bias.dtype),
    "to tensor": lambda m, x: x.to(m.up.weight),
    "type_as": lambda m, x: x.type_as(m.up.weight),
    "compared": lambda m, x: x.to(m.up.weight.dtype) if x.dtype != m.up.weight.dtype else x,
    "first parameter": lambda m, x: x.to(next(m.parameters()).dtype),
}


@pytest.mark.parametrize("cast", CASTS)
def test_reading_a_dtype_contracts_nothing(cast: str, capture: str) -> None:
    pruned = pruned_half(Casts(CASTS[cast]), torch.randn(2, 5, 6), capture)
    assert pruned.get_parameter("up.weight").shape == (20, 8)
    assert pruned.get_parameter("down.weight").shape == (8, 20)


# ---------------------------------------------------------------- group norm over a concatenation


class Skips(nn.Module):
    """Feature maps side by side, then normalised in groups of both."""

    def __init__(self, widths: tuple[int, ...], groups: int, by_hand: bool = False) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(3, width, 1) for width in widths)
        self.norm, self.by_hand = nn.GroupNorm(groups, sum(widths)), by_hand
        self.out = nn.Conv2d(sum(widths), 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([part(x) for part in self.parts], 1)
        if self.by_hand:
            groups = y.unflatten(1, (self.norm.num_groups, -1))
            variance, mean = torch.var_mean(groups, (2, 3, 4), unbiased=False, keepdim=True)
            return self.out(((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2))
        return self.out(self.norm(y).relu())


@pytest.mark.parametrize(
    ("widths", "groups"),
    [((32, 16), 8), ((16, 32), 8), ((32, 16, 16), 4), ((24, 8, 16), 4), ((40, 24), 8), ((16, 16), 4)],
    ids=str,
)
def test_groups_may_cross_the_borders_of_a_concatenation(
    widths: tuple[int, ...], groups: int, capture: str
) -> None:
    pruned = pruned_half(Skips(widths, groups), torch.randn(2, 3, 4, 4), capture)
    for i, width in enumerate(widths):
        assert pruned.get_parameter(f"parts.{i}.weight").shape[0] == width // 2
    assert pruned.get_parameter("norm.weight").shape == (sum(widths) // 2,)


# ---------------------------------------------------------------- repeats whose length is given


class Widens(nn.Module):
    """A shortcut that repeats channels, as many times as a block widens them."""

    def __init__(self, times: int, repeat: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.first, self.wide = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16 * times, 3, padding=1)
        self.last, self.times, self.repeat = nn.Conv2d(16 * times, 4, 1), times, repeat

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.wide(x).relu() + self.repeat(x, self.times))


REPEATS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "from the shape": lambda x, n: x.repeat_interleave(n, dim=1, output_size=x.shape[1] * n),
    "a number": lambda x, n: torch.repeat_interleave(x, n, dim=1, output_size=16 * n),
    "none": lambda x, n: torch.repeat_interleave(x, repeats=n, dim=1),
    "from size()": lambda x, n: x.repeat_interleave(repeats=n, dim=-3, output_size=n * x.size(1)),
}


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("repeat", REPEATS)
def test_a_repeat_whose_length_is_given_shrinks(repeat: str, times: int, capture: str) -> None:
    pruned = pruned_half(Widens(times, REPEATS[repeat]), torch.randn(2, 3, 4, 4), capture)
    assert pruned.get_parameter("first.weight").shape[0] == 8
    assert pruned.get_parameter("wide.weight").shape[:2] == (8 * times, 8)


# ---------------------------------------------------------------- arguments and orders that people use


def batch_norm(m: nn.Module, x: Tensor) -> Tensor:
    n: Any = m.norm
    return torch.batch_norm(x, n.weight, n.bias, n.running_mean, n.running_var, False, 0.1, 1e-5, False)


SPELLED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "output_size": lambda m, x: m.up(x, output_size=[8, 9]),
    "output_size of a shape": lambda m, x: m.up(x[..., :2, :3], output_size=x.shape[2:]),
    "torch.batch_norm": batch_norm,
    "squeezed by name": lambda m, x: torch.squeeze(input=x.unsqueeze(2), dim=2),
    "permuted by name": lambda m, x: torch.permute(input=x, dims=(0, 2, 3, 1)).permute(dims=(0, 3, 1, 2)),
}  # fmt: skip


class Spelled(nn.Module):
    def __init__(self, op: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.op = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1), op
        self.up, self.norm = nn.ConvTranspose2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.op(self, self.first(x)).relu())


@pytest.mark.parametrize("op", SPELLED)
def test_arguments_in_other_orders_and_by_name(op: str, capture: str) -> None:
    model = randomise(Spelled(SPELLED[op]).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 3, 4, 5), capture=capture)
    assert pruned.get_parameter("first.weight").shape[0] == 8
    assert_exact(model, pruned, 1, 3)


def test_an_equation_without_a_result_keeps_what_it_leaves_out_first(capture: str) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 16), nn.Linear(16, 4)
            self.mixed = nn.Parameter(torch.randn(16, 16))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.einsum("...i,ij", self.first(x), self.mixed))

    pruned = pruned_half(Mixed(), torch.randn(2, 5, 3), capture)
    assert pruned.get_parameter("mixed").shape == (8, 8)


class Standardised(nn.Conv2d):
    """Changes what the native `forward` runs, not `forward`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean((1, 2, 3), keepdim=True), bias)


def test_a_layer_that_changes_a_part_of_its_forward_is_no_native_one(capture: str) -> None:
    model = nn.Sequential(
        Standardised(3, 16, 3), nn.ReLU(), Standardised(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    pruned = pruned_half(model, torch.randn(2, 3, 8, 8), capture)
    assert pruned.get_parameter("2.weight").shape[:2] == (4, 8)


@pytest.mark.parametrize("start", [-15, -16, 1])
def test_a_strided_slice_from_the_end_takes_what_it_took(start: int, capture: str) -> None:
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.part, self.whole = nn.Linear(3, 16), nn.Linear(8, 4), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.part(y[..., start::2]) + self.whole(y)

    model, x = randomise(Strided().eval()), torch.randn(2, 5, 3)
    with contextlib.suppress(fxprune.errors.NothingPrunableError):
        assert fxprune.verify(model, fxprune.prune(model, 0.5, example_inputs=x, capture=capture)).exact


# ---------------------------------------------------------------- written where a mask says


class Prompts(nn.Module):
    """Features changed where a label says so."""

    def __init__(self, write: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.given, self.b = nn.Linear(3, 16), nn.Embedding(1, 16), nn.Linear(16, 4)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.write(self.a(x), x[..., 0] > 0, self.given.weight))


def set_to_number(y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    y[mask] = 0.5
    return y


def set_to_row(y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    y[mask] = w[0]
    return y


WRITES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "number": set_to_number,
    "row": set_to_row,
    "index_put": lambda y, mask, w: y.index_put((mask,), w[0]),
    "accumulated": lambda y, mask, w: y.index_put((mask,), w[0], accumulate=True),
    "in place": lambda y, mask, w: y.index_put_((mask,), w[0], accumulate=True),
    "where": lambda y, mask, w: torch.where(mask[..., None], y + w, y),
    "filled": lambda y, mask, w: y.masked_fill(mask.unsqueeze(-1), 0.5) + w,
    "scattered": lambda y, mask, w: y.masked_scatter(mask.unsqueeze(-1), w.expand(10, -1)),
}


@pytest.mark.parametrize("write", WRITES)
def test_what_is_written_under_a_mask_shrinks(write: str, capture: str) -> None:
    model = randomise(Prompts(WRITES[write]).eval())
    x = torch.randn(2, 5, 3)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    assert pruned.get_parameter("a.weight").shape[0] == 8
    if write == "scattered":  # as many rows as the example has
        return assert_exact(model, pruned)
    assert_exact(model, pruned, 1, 3)
    pruned.train()(x).sum().backward()


def added(y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    y[mask] += w
    return y


def scaled(y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    y[mask] = y[mask] * 2
    return y


def of_another(y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    z = torch.tanh(y)
    y[mask] = y[mask] - z[mask] * w[0]
    return y


def of_samples(y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    picked = y[mask[:, 0]]
    picked *= 3
    y[mask[:, 0]] = torch.sigmoid(picked) + w
    return y + w


def twice(y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    y[mask] += w
    y[~mask] -= 2 * w
    return y


def of_what_it_was(y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    before = y[mask]
    y = y * 2
    y[mask] = before + w[0]
    return y


def under_two_names(y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    picked = y[mask]
    other = picked
    picked += w
    y[mask] = other
    return y


def by_a_method(y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    picked = y[mask]
    picked.mul_(3.0).sub_(w)
    y[mask] = picked
    return y


ROWS = [added, scaled, of_another, of_samples, twice, of_what_it_was, under_two_names, by_a_method]


@pytest.mark.parametrize("write", ROWS)
def test_rows_that_a_mask_picks_are_written(write: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    model = randomise(Prompts(write).eval())
    x = torch.randn(2, 5, 3)
    pruned = fxprune.prune(model, 0.5, example_inputs=x)
    assert pruned.get_parameter("a.weight").shape[0] == 8
    assert_exact(model, pruned, 1, 3)
    same = fxprune.prune(model, 0.0, example_inputs=x)
    for other in (x, torch.randn(1, 5, 3), torch.randn(4, 7, 3), -torch.ones(2, 5, 3), torch.ones(2, 5, 3)):
        found = []
        for module in (model.train(), same.train()):
            module.zero_grad()
            out = module(other)
            out.square().sum().backward()
            grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
            found.append({"out": out, **grads})
        torch.testing.assert_close(found[0], found[1])


def to_the_mean(y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    y[mask] = y[mask] - y[mask].mean(0)
    return y


def by_order(y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    y[mask] = y[mask].cumsum(0)
    return y


def by_other_rows(y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    y[mask] = y[mask.flip(1)] * 2
    return y


def read_elsewhere(y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    picked = y[mask] + w
    y[mask] = picked
    return y + picked.sum(0)


REFUSED = [to_the_mean, by_order, by_other_rows, read_elsewhere]


@pytest.mark.parametrize(
    ("write", "capture"), [*((w, "export") for w in ROWS), *((w, c) for w in REFUSED for c in CAPTURES)]
)
def test_as_many_rows_as_a_mask_has_are_refused_and_the_cure_is_named(
    write: Callable[[Tensor, Tensor, Tensor], Tensor], capture: str
) -> None:
    with pytest.raises(CaptureError, match=r"test_habits.py:\d+.*depends on the values.*torch.where\(mask"):
        fxprune.prune(Prompts(write).eval(), 0.5, example_inputs=torch.randn(2, 5, 3), capture=capture)


class Two(nn.Module):
    """Two layers, and what is made of both."""

    def __init__(self, then: Any, inner: nn.Module | None = None, width: int = 8) -> None:
        super().__init__()
        self.a, self.b, self.inner, self.then = nn.Linear(6, width), nn.Linear(6, width), inner, then
        self.head = nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.then(self, self.a(x), self.b(x)))


def by_place(index: int) -> Any:
    def then(self: Two, a: Tensor, b: Tensor) -> Tensor:
        joined = torch.cat([a, b.relu(), self.inner(a.relu())], -1)
        return joined * joined[..., index, None]

    return then


CALLS: dict[str, Any] = {
    "an index from the front": lambda: Two(by_place(8), nn.Linear(8, 8)),
    "an index from the back": lambda: Two(by_place(-9), nn.Linear(8, 8)),
    "names in another order": lambda: Two(lambda s, a, b: s.inner(hx=b, input=a), nn.GRUCell(8, 8)),
    "a bilinear layer's names": lambda: Two(
        lambda s, a, b: s.inner(input2=b.relu(), input1=a), nn.Bilinear(8, 8, 4)
    ),
    "a share of what is true": lambda: Two(lambda s, a, b: a * ((b > 0).sum(-1, keepdim=True) / 8)),
    "a mean by its other name": lambda: Two(lambda s, a, b: a * (b.sum(-1, keepdims=True) / 8)),
    "a sum in another type": lambda: Two(
        lambda s, a, b: a * (b.sum(-1, True, dtype=torch.float64) / 8).to(a.dtype)
    ),
    "a floor": lambda: Two(lambda s, a, b: a * torch.div(b.sum(-1, True), 8, rounding_mode="floor")),
    "the first three": lambda: Two(lambda s, a, b: torch.cross(a, b).flatten(1), width=4),
}


@pytest.mark.parametrize("kind", CALLS)
def test_a_call_is_read_as_torch_reads_it(kind: str, capture: str) -> None:
    x = torch.randn(4, 3, 6) if kind == "the first three" else torch.randn(4, 6)
    model = CALLS[kind]()
    model(x)
    randomise(model.eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    assert fxprune.verify(model, pruned) < 1e-8
    assert pruned(x).shape == model(x).shape


def test_one_sample_of_an_instance_norm() -> None:
    layers = nn.Linear(6, 8), nn.InstanceNorm2d(4), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 5)
    model = nn.Sequential(*layers)
    x = torch.randn(4, 9, 6)  # channels, and two dimensions that positions are of
    pruned = fxprune.prune(model.eval(), 0.5, example_inputs=x)
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-8


def test_buffers_are_as_they_were_where_code_writes_to_them() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)
            self.register_buffer("kept", torch.tensor([1.0, 0.0, 2.0]))

        def forward(self, x: Tensor) -> Tensor:
            kept = self.kept.mul_(2)
            return self.b(self.a(x))[:, : len((kept > 0).nonzero())]

    model = Counted().eval()
    with contextlib.suppress(fxprune.FxpruneError):
        fxprune.analyze(model, example_inputs=torch.randn(2, 6), capture="export")
    assert model.kept.tolist() == [1.0, 0.0, 2.0]
