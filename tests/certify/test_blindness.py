"""A certificate that saw nothing says so; one that can see by other inputs or other weights does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import certificate
from helpers import ConvNet, mlp, randomise, small_vit
from torch import Tensor, nn

import fxprune
from fxprune.errors import CertificateError, PlanError
from fxprune.graph.op_names import op_name

VECTORS = torch.randn(2, 6)


class After(nn.Module):
    """An MLP and what is made of its result."""

    def __init__(self, then: Callable[[Tensor], Any], body: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.then = body or mlp(), then

    def forward(self, x: Tensor) -> Any:
        return self.then(self.body(x))


def pruned_pair(model: nn.Module, inputs: Any, capture: str = "symbolic", **options: Any) -> tuple[Any, Any]:
    model.eval()
    return model, fxprune.prune(model, 0.5, example_inputs=inputs, capture=capture, **options)


def spoil(pruned: nn.Module) -> None:
    with torch.no_grad():
        max(pruned.parameters(), key=Tensor.numel).mul_(-1)


def swap_rows(pruned: Any) -> None:
    """A wrong rewrite that weights do not show: two features change places on their way."""
    gelu = next(n for n in pruned.graph.nodes if op_name(n.target) in ("1", "body.1", "a.1", "gelu", "tanh"))
    with pruned.graph.inserting_after(gelu):
        rolled = pruned.graph.call_function(torch.roll, (gelu, 1, -1))
    gelu.replace_all_uses_with(rolled, delete_user_cb=lambda n: n is not rolled)
    pruned.recompile()


NOTHING: dict[str, Callable[[Tensor], Any]] = {
    "times zero": lambda y: y * 0,
    "never above": lambda y: (y * 0 - 100).relu(),
    "a constant": lambda y: y * 0 + 3,
    "not a number": lambda y: (y * 0 - 1).log(),
    "infinite": lambda y: (y * 0 + 1) / 0,
    "empty": lambda y: y[:, 1:1],
}


@pytest.mark.parametrize("then", NOTHING.values(), ids=NOTHING)
def test_what_shows_nothing_is_not_exact(then: Callable[[Tensor], Any], capture: str) -> None:
    model, pruned = pruned_pair(After(then), VECTORS, capture)
    found = fxprune.verify(model, pruned)
    assert not found.exact
    assert not found < 1e-8
    assert "saw nothing" in repr(found)


class Ratio(nn.Module):
    """Two inputs, whose quotient is no number where both are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = mlp(), mlp()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) * (x.sum(-1, keepdim=True) / y.sum(-1, keepdim=True)) + self.b(y)


def test_inputs_are_dead_only_where_outputs_are_numbers() -> None:
    zeros = torch.zeros(2, 6)
    model, pruned = pruned_pair(Ratio(), (zeros, zeros))
    found = fxprune.verify(model, pruned, example_inputs=(zeros, zeros))
    assert found.exact and not found.notes


def test_a_mask_that_was_changed_is_named() -> None:
    model = After(lambda y: y)
    model.register_buffer("mask", torch.ones(4, 8, dtype=torch.bool).tril())
    model.then = lambda y: y.masked_fill(~model.mask[0, :4], 1.0)
    model, pruned = pruned_pair(model, VECTORS)
    pruned.mask.logical_not_()
    assert "mask" in fxprune.verify(model, pruned).changed


def test_no_number_at_all_is_an_error(capture: str) -> None:
    model, pruned = pruned_pair(After(lambda y: y.argmax(-1)), VECTORS, capture)
    with pytest.raises(CertificateError, match="no tensor of numbers"):
        fxprune.verify(model, pruned)


def hidden_by_a_bias() -> nn.Module:
    """Its outputs are zero with these weights, whatever the input."""
    model = After(torch.relu)
    with torch.no_grad():
        model.body[2].bias.sub_(100)
    return model


def hidden_by_a_threshold() -> nn.Module:
    """Its outputs are zero but for large inputs."""
    return After(lambda y: (y - 12).relu() - (-y - 12).relu())


class Skipped(nn.Module):
    """A branch behind a layer scale of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gain = mlp(6, 16, 6), nn.Parameter(torch.zeros(6))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.gain * self.body(x))


def hidden_by_a_last_layer() -> nn.Module:
    model = After(lambda y: y)
    nn.init.zeros_(model.body[2].weight)
    nn.init.zeros_(model.body[2].bias)
    return model


HIDDEN = [hidden_by_a_bias, hidden_by_a_threshold, Skipped, hidden_by_a_last_layer]


@pytest.mark.parametrize("make", HIDDEN, ids=lambda make: make.__name__)
def test_what_hides_is_looked_behind(make: Callable[[], nn.Module], capture: str) -> None:
    model, pruned = pruned_pair(make(), VECTORS, capture)
    assert fxprune.verify(model, pruned).exact
    wrong = copy.deepcopy(pruned)
    swap_rows(wrong)
    assert not fxprune.verify(model, wrong) < 1e-8
    spoil(pruned)
    assert not fxprune.verify(model, pruned) < 1e-8


def test_blank_inputs_are_not_all_it_tries() -> None:
    """Zeros say nothing of a first layer without a bias."""
    model = nn.Sequential(nn.Linear(6, 16, bias=False), nn.Tanh(), nn.Linear(16, 4, bias=False))
    model, pruned = pruned_pair(model, torch.zeros(2, 6))
    assert fxprune.verify(model, pruned, example_inputs=torch.zeros(2, 6)).exact
    swap_rows(pruned)
    assert not fxprune.verify(model, pruned, example_inputs=torch.zeros(2, 6)).exact


class ClassToken(nn.Module):
    """What answers is a learned token that nothing mixes with the input."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Linear(6, 6), mlp()
        self.token = nn.Parameter(torch.randn(1, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1)
        return self.body(x)[:, 0]


def test_an_answer_of_weights_alone_is_compared_with_other_weights(capture: str) -> None:
    model, pruned = pruned_pair(randomise(ClassToken()), torch.randn(2, 5, 6), capture)
    found = fxprune.verify(model, pruned)
    assert found.exact
    assert "no output depends on the inputs" in repr(found)
    swap_rows(pruned)
    assert not fxprune.verify(model, pruned).exact


class Two(nn.Module):
    """The second input is read, and comes to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = mlp(), mlp()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) + self.b(y) * 0


def test_it_names_an_input_that_no_output_depends_on(capture: str) -> None:
    model, pruned = pruned_pair(Two(), (VECTORS, VECTORS + 1), capture)
    found = fxprune.verify(model, pruned)
    assert found.exact
    assert "no output depends on input 'y'" in repr(found)


# ---------------------------------------------------------------- outputs of all kinds


class Parts(nn.Module):
    """A dict with register tokens of which there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.body(x)
        return {"cls": y[:, 0], "registers": y[:, 1:1], "patches": y[:, 1:]}


def test_empty_outputs_beside_others(capture: str) -> None:
    model, pruned = pruned_pair(Parts(), torch.randn(2, 5, 6), capture)
    assert fxprune.verify(model, pruned).exact


def test_minus_infinity_of_a_mask_is_compared_as_it_is(capture: str) -> None:
    mask = torch.tensor([True, False, False, True])
    model, pruned = pruned_pair(After(lambda y: y.masked_fill(mask, float("-inf"))), VECTORS, capture)
    assert fxprune.verify(model, pruned).exact
    swap_rows(pruned)
    assert not fxprune.verify(model, pruned).exact


class Forgetful(ConvNet):
    """Its `train` returns nothing."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


def test_a_train_that_returns_nothing() -> None:
    model = randomise(Forgetful(dropout=0.5))
    model.train(False)
    image = torch.randn(2, 3, 32, 32)
    pruned = fxprune.prune(model, 0.5, example_inputs=image)
    assert fxprune.verify(model, pruned).exact


# ---------------------------------------------------------------- inputs that mean something


class Words(nn.Module):
    """Token numbers with a mask, and a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body = nn.Embedding(11, 6), mlp()
        self.other = nn.Linear(6, 6)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.table(ids)
        return self.body(torch.where(mask.bool().unsqueeze(-1), x, self.other(x).relu())).mean(1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_whole_numbers_are_varied(capture: str, dtype: torch.dtype) -> None:
    """Of the zeros that are recorded, one row of the table and one side of the mask would be all."""
    inputs = (torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 5, dtype=dtype))
    model, pruned = pruned_pair(randomise(Words()), inputs, capture)
    found = fxprune.verify(model, pruned)
    assert found.exact
    assert not found.notes
    flipped = pruned.graph.find_nodes(op="call_function", target=torch.where)
    flipped += pruned.graph.find_nodes(op="call_function", target=torch.ops.aten.where.self)
    (where,) = flipped
    where.args = (where.args[0], where.args[1], where.args[1])
    pruned.recompile()
    assert not fxprune.verify(model, pruned).exact


class Kinds(nn.Module):
    """Numbers of which only some mean something: a table without a rule that says how many."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.register_buffer("table", torch.randn(4, 6))

    def forward(self, x: Tensor, kind: Tensor) -> Tensor:
        return self.body(x + self.table[kind])


def test_the_examples_own_whole_numbers_are_used(capture: str) -> None:
    kinds = torch.tensor([3, 1])
    model, pruned = pruned_pair(randomise(Kinds()), (VECTORS, kinds), capture)
    assert torch.equal(pruned.record.example.args[1], kinds)
    assert pruned.record.example.args[0].is_meta
    assert fxprune.verify(model, pruned).exact
    with torch.no_grad():
        pruned.table[3] += 1
    assert not fxprune.verify(model, pruned).exact


# ---------------------------------------------------------------- noise


class Latent(nn.Module):
    """It draws noise in the layout of what it is added to."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw
        self.a, self.mean = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.a(x).relu().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        mean = self.mean(h)
        return self.out(mean + self.draw(mean)), h.mean(1)


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "randn_like": torch.randn_like,
    "rand_like": torch.rand_like,
    "of a size": lambda m: torch.randn(m.shape[0], 8, 8, 8),
    "permuted": lambda m: torch.randn_like(m.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_noise_is_the_same_in_any_layout(draw: Callable[[Tensor], Tensor], capture: str) -> None:
    model, pruned = pruned_pair(randomise(Latent(draw)), torch.randn(2, 3, 8, 8), capture)
    assert fxprune.verify(model, pruned).exact
    spoil(pruned)
    assert not fxprune.verify(model, pruned).exact


# ---------------------------------------------------------------- weights that are not the plan's


def trained(model: nn.Module, inputs: Tensor) -> None:
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    model.train()(inputs).square().mean().backward()
    optimiser.step()
    model.eval()


def test_after_training_it_names_what_changed_and_certifies_the_function() -> None:
    image = torch.randn(4, 3, 32, 32)
    model, pruned = pruned_pair(randomise(ConvNet()), image)
    assert not fxprune.verify(model, pruned).changed
    trained(pruned, image)
    found = fxprune.verify(model, pruned)
    assert not found.exact
    assert not found < 1e-8
    assert set(found.changed) >= {"head.weight", "narrow.weight", "stem.1.running_mean"}
    assert "not the plan's slices" in repr(found)
    assert found.function is not None
    assert found.function < 1e-8
    again = pickle.loads(pickle.dumps(found))
    assert again.changed == found.changed
    assert repr(again) == repr(found)
    assert copy.deepcopy(found).function == found.function


def test_a_weight_without_effect_counts_too() -> None:
    model, pruned = pruned_pair(Two(), (VECTORS, VECTORS))
    with torch.no_grad():
        pruned.get_parameter("b.0.weight")[0, 0] += 1
    found = fxprune.verify(model, pruned)
    assert set(found.changed) == {"b.0.weight"}
    assert not found < 1e-8


class Bounded(nn.Module):
    """Bounds without a limit, and a table with a place for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.register_buffer("low", torch.tensor(float("-inf")))
        self.register_buffer("high", torch.full((4,), float("inf")))
        self.register_buffer("none", torch.tensor([float("nan"), 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(self.body(x), self.high), self.low) * self.none[1]


def test_infinite_constants_are_the_plans(capture: str) -> None:
    model, pruned = pruned_pair(Bounded(), VECTORS, capture)
    assert fxprune.verify(model, pruned).exact
    with torch.no_grad():
        pruned.high[0] = 1
    found = fxprune.verify(model, pruned)
    assert set(found.changed) == {"high"}
    assert not found < 1e-8


def test_a_replaced_weight_is_named() -> None:
    """By `verify`, and by what it is made of: there is nothing to compare it with."""
    model, pruned = pruned_pair(small_vit(), torch.randn(2, 3, 32, 32))
    analysis = fxprune.analyze(model, example_inputs=torch.randn(2, 3, 32, 32))
    pruned.pos_embed = nn.Parameter(torch.randn(1, 5, 24))
    with pytest.raises(PlanError, match="pos_embed"):
        fxprune.verify(model, pruned)
    with pytest.raises(CertificateError, match=r"pos_embed has shape \(1, 5, 24\)"):
        certificate(model, pruned, analysis)


def test_other_sizes_than_the_captured() -> None:
    model, pruned = pruned_pair(randomise(ConvNet()), torch.randn(2, 3, 32, 32))
    for shape in [(1, 3, 32, 32), (3, 3, 48, 40), (5, 3, 17, 23)]:
        assert fxprune.verify(model, pruned, example_inputs=torch.randn(shape)).exact
