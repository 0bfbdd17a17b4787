"""Writes in place show in all that shares the memory, or the capture refuses them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from exactness import certified_at
from helpers import assert_same, randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError

X = torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A hidden width of 12 before a head; what happens to the hidden features is a function's."""

    def __init__(self, hidden: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.skip, self.drop, self.drop_here = nn.Identity(), nn.Dropout(0.5), nn.Dropout(0.5, inplace=True)
        self.relu = nn.ReLU(inplace=True)
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self, self.a(x)))


# ---------------------------------------------------------------- two names for one tensor


def added_to_another_name(m: Net, x: Tensor) -> Tensor:
    y = x
    y += 1
    return x * y


def added_to_one_of_a_list(m: Net, x: Tensor) -> Tensor:
    seen = [x, m.b(x)]
    total = seen[1]
    total *= 2
    return seen[0] + seen[1]


def masks_joined(m: Net, x: Tensor) -> Tensor:
    mask = x > 0
    both = mask
    both &= m.b(x) > 0
    return x * mask


def written_by_out(m: Net, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    torch.mul(x, 2, out=y)
    return y + 1


def added_to_a_slice(m: Net, x: Tensor) -> Tensor:
    x = x * 1
    x[:, 0] += 1
    x[:, 1:] -= x[:, :1]
    part = x[:, 2:]
    part *= 3
    return x


def numbers_are_no_tensors(m: Net, x: Tensor) -> Tensor:
    n = x.shape[1]
    half = n
    half += 2
    half //= 2
    shape = x.shape[:2]
    shape += (12,)
    return x.reshape(*shape) * half / n


def dropped_in_a_part(m: Net, x: Tensor) -> Tensor:
    return m.drop_here(x[:, :1]) * x


def dropped_in_a_part_of_a_part(m: Net, x: Tensor) -> Tensor:
    part = x[:, 1:]
    return m.drop_here(part[:, :1]) + part[:, 1:] + x[:, :1]


def cut_in_a_part(m: Net, x: Tensor) -> Tensor:
    part = x[:, :1]
    return m.relu(part) + part * x


def sizes_asked_before(m: Net, x: Tensor) -> Tensor:
    shape, kind = x.shape, x.dtype
    x += 1
    return x.reshape(shape[0], -1, shape[-1]).to(kind) * shape[1]


FOLLOWED = [
    *(added_to_another_name, added_to_one_of_a_list, masks_joined, written_by_out, added_to_a_slice),
    *(numbers_are_no_tensors, dropped_in_a_part, dropped_in_a_part_of_a_part, cut_in_a_part),
    sizes_asked_before,
]


# ---------------------------------------------------------------- memory by another way


def view_before(m: Net, x: Tensor) -> Tensor:
    flat = x.view(-1, 12)
    x += 1
    return x * flat.view_as(x)


def same_if_contiguous(m: Net, x: Tensor) -> Tensor:
    y = x.contiguous()
    y *= 2
    return x + y


def same_if_nothing_is_dropped(m: Net, x: Tensor) -> Tensor:
    y = m.drop(x)
    y += 1
    return x * y


def passed_on_by_a_layer(m: Net, x: Tensor) -> Tensor:
    y = m.skip(x)
    y += 1
    return x * y


def into_a_tensor_that_code_made(m: Net, x: Tensor) -> Tensor:
    table = torch.zeros(2, 12, dtype=torch.float64)
    table[0] = x.mean((0, 1))
    return x + table.sum(0)


def part_then_whole(m: Net, x: Tensor) -> Tensor:
    part = x[:, :1]
    part += 1
    x *= 2
    return part + m.b(x)


def part_then_another(m: Net, x: Tensor) -> Tensor:
    part = x[:, :1]
    part *= 3
    more = x[:, :2]
    more += 1
    return part * x


def part_of_a_part(m: Net, x: Tensor) -> Tensor:
    part = x[:, :3]
    inner = part[:, 1:2]
    inner *= 3
    part += 1
    return inner + m.b(x)


def part_then_its_place(m: Net, x: Tensor) -> Tensor:
    part = x[:, :1]
    part *= 2
    x[:, 0] = 0.0
    return part + m.b(x)


def cut_then_whole(m: Net, x: Tensor) -> Tensor:
    part = m.relu(x[:, :1])
    x += 1
    return part * x


LEFT_TO_EXPORT = [
    *(view_before, same_if_contiguous, passed_on_by_a_layer, into_a_tensor_that_code_made),
    *(part_then_whole, part_then_another, part_of_a_part, part_then_its_place, cut_then_whole),
]


def whole_after_a_dropout(m: Net, x: Tensor) -> Tensor:
    y = m.drop_here(x)
    x *= 2
    return y


def dropped_and_written(m: Net, x: Tensor) -> Tensor:
    y = m.drop(x)
    y *= 2
    return x


def whole_after_a_dropped_part(m: Net, x: Tensor) -> Tensor:
    y = m.drop_here(x[:, :1])
    x.mul_(2)
    return y


THROUGH_A_DROPOUT = [
    *(same_if_nothing_is_dropped, whole_after_a_dropout, dropped_and_written, whole_after_a_dropped_part),
]


def model_with(hidden: Callable[[Net, Tensor], Tensor]) -> Net:
    return randomise(Net(hidden)).double().eval()


def assert_right(model: nn.Module, capture: str) -> None:
    whole, pruned = certified_at((0.0, 0.5), model, X, capture)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 6, 8, dtype=torch.float64)
        assert_same(whole(x), model(x), 1e-12)
    assert pruned.get_parameter("a.weight").shape[0] == 6


@pytest.mark.parametrize("hidden", FOLLOWED, ids=lambda f: f.__name__)
def test_every_name_of_a_tensor_sees_the_write(hidden: Callable[[Net, Tensor], Tensor], capture: str) -> None:
    model = model_with(hidden)
    if hidden is written_by_out:
        model.requires_grad_(False)  # torch itself computes no derivative of it
    assert_right(model, capture)


@pytest.mark.parametrize("hidden", LEFT_TO_EXPORT, ids=lambda f: f.__name__)
def test_memory_that_symbolic_tracing_does_not_see_is_left_to_export(
    hidden: Callable[[Net, Tensor], Tensor],
) -> None:
    model = model_with(hidden)
    with pytest.raises(CaptureError, match=r"at .*test_in_place.py:\d+ writes in place|is written to at"):
        fxprune.prune(model, 0.5, example_inputs=X, capture="symbolic")
    assert_right(model, "auto")


@pytest.mark.parametrize("hidden", THROUGH_A_DROPOUT, ids=lambda f: f.__name__)
def test_a_write_to_what_a_dropout_passes_on_is_refused(
    hidden: Callable[[Net, Tensor], Tensor], capture: str
) -> None:
    """One tensor in eval mode, two in train mode: no graph has both."""
    with pytest.raises(CaptureError, match=r"at .*test_in_place.py:\d+ writes in place"):
        fxprune.prune(model_with(hidden), 0.5, example_inputs=X, capture=capture)


def test_assigning_data_is_refused() -> None:
    def assigned(m: Net, x: Tensor) -> Tensor:
        y = x * 1
        y.data = x.data * 2
        return y

    with pytest.raises(CaptureError, match=r"assigns to \.data of a tensor"):
        fxprune.prune(model_with(assigned), 0.5, example_inputs=X, capture="symbolic")


# ---------------------------------------------------------------- what a call writes to


class Keeps(nn.Module):
    """Writes to its input, and to a buffer in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(12))
        self.a, self.head = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        x = self.a(x)
        self.mean.copy_(x.detach().mean((0, 1)))
        return self.head(x - self.mean)


def test_verifying_leaves_inputs_and_buffers_as_they_are() -> None:
    model = randomise(Keeps()).double().eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=X.clone(), capture="export")
    before, given = {n: t.clone() for n, t in model.state_dict().items()}, X.clone()
    for _ in range(2):
        assert fxprune.verify(model, pruned, example_inputs=given) < 1e-8
    assert torch.equal(given, X)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


# ---------------------------------------------------------------- weights by other ways


def called_with_others(m: Net, x: Tensor) -> Tensor:
    return torch.func.functional_call(m.b, {n: p * 1.5 for n, p in m.b.named_parameters()}, (x,))


def summed_over_all(m: Net, x: Tensor) -> Tensor:
    return m.b(x) * sum(p.square().sum() for p in m.b.parameters())


@pytest.mark.parametrize("hidden", [called_with_others, summed_over_all], ids=lambda f: f.__name__)
def test_weights_are_no_constants(hidden: Callable[[Net, Tensor], Tensor]) -> None:
    model = model_with(hidden)
    with pytest.raises(CaptureError, match=r"another weight|going through all of them"):
        fxprune.prune(model, 0.5, example_inputs=X, capture="symbolic")
    whole = fxprune.prune(model, 0.0, example_inputs=X)
    assert_same(whole(X), model(X), 1e-12)
    whole(X).sum().backward()
    model(X).sum().backward()
    assert torch.allclose(whole.get_parameter("b.weight").grad, model.b.weight.grad)


# ---------------------------------------------------------------- inputs


class Overwrites(nn.Module):
    """What happens to the input itself is a function's."""

    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.head, self.write = nn.Linear(8, 12), nn.Linear(12, 4), write

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(self.write(x)).relu())


def scaled_here(x: Tensor) -> Tensor:
    x.mul_(2)
    x += 1
    return x


def set_in_part(x: Tensor) -> Tensor:
    x[:, 0] = 0
    x[:, 1:3] -= x[:, 3:5]
    return x


def cut_here(x: Tensor) -> Tensor:
    return x.relu_() + x.sigmoid()


def through_a_view(x: Tensor) -> Tensor:
    y = x.transpose(1, 2)
    y += 1
    return y.mT


def to_a_copy(x: Tensor) -> Tensor:
    x = x + 0
    x *= 3
    return x


@pytest.mark.parametrize("write", [scaled_here, set_in_part, cut_here, through_a_view, to_a_copy])
def test_an_input_is_written_to_as_by_the_model(write: Callable[[Tensor], Tensor], capture: str) -> None:
    model = randomise(Overwrites(write).double().eval())
    if capture == "symbolic" and write is through_a_view:
        with pytest.raises(CaptureError, match=r"a view of an input is written to at .*test_in_place\.py"):
            fxprune.prune(model, 0.0, example_inputs=X.clone(), capture=capture)
        return
    (whole, pruned) = certified_at((0.0, 0.5), model, X.clone(), capture)
    for batch in (X, X[:1], X.repeat(2, 1, 1)):
        given = [batch.clone() for _ in range(3)]
        assert_same(whole(given[0]), model(given[1]), 1e-12)
        pruned(given[2])
        assert torch.equal(given[0], given[1]) and torch.equal(given[2], given[1])
    x = torch.jit.trace(pruned, X.clone())(X.clone())
    assert_same(x, pruned(X.clone()), 1e-12)
