"""form="module": code that computes what no output shows runs on weights of the new sizes as well."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.result.pruned_module import record_of


class Block(nn.Module):
    """A scaled residual branch."""

    def __init__(self, dim: int = 48) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, 96), nn.Linear(96, dim)
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.fc2(F.gelu(self.fc1(self.norm(x))))


class Idle(nn.Module):
    """Computes a pooled head, a last block, or both for nothing; what `heads` asks for it returns."""

    def __init__(self, idle: str) -> None:
        super().__init__()
        self.idle = idle
        self.patches, self.blocks = nn.Conv2d(3, 48, 8, 8), nn.Sequential(Block(), Block())
        if idle != "head":
            self.last = Block()
        if idle != "block":
            self.pool, self.aux = (
                nn.LayerNorm(48),
                nn.Sequential(nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 3)),
            )
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patches(x).flatten(2).mT)
        y = self.last(x) if self.idle != "head" else x
        if self.idle != "block":
            self.aux(self.pool(y[:, 0]))
        return self.head(x.mean(1))


@pytest.mark.parametrize("idle", ["head", "block", "both"])
def test_what_no_output_shows_has_the_new_sizes(idle: str) -> None:
    model, x = randomise(Idle(idle).eval()), torch.randn(2, 3, 32, 32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    own = record_of(pruned).own
    assert type(pruned) is Idle and own.is_whole, own.parts
    assert fxprune.verify(model, pruned, example_inputs=torch.randn(3, 3, 32, 32)) < 1e-8
    kept = fxprune.plan_of(pruned).kept["head.weight"][1]
    if idle != "block":  # its own channels stay, those that it reads go
        assert torch.equal(pruned.pool.weight, model.pool.weight[kept])
        assert torch.equal(pruned.aux[0].weight, model.aux[0].weight[:, kept])
        assert pruned.aux[2].weight.shape == (3, 48)
    if idle != "head":
        assert torch.equal(pruned.last.scale, model.last.scale[kept])
        assert torch.equal(pruned.last.fc2.weight, model.last.fc2.weight[kept])
    assert not hasattr(pruned, "kept") and {*pruned.state_dict()} == {*model.state_dict()}


@pytest.mark.parametrize("capture", ["symbolic", "export"])
def test_layers_whose_results_go_nowhere_read_the_channels_that_are_left(capture: str) -> None:
    """Export hands over a graph without them."""
    model, x = randomise(Idle("head").eval()), torch.randn(2, 3, 32, 32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module", capture=capture)
    assert record_of(pruned).own.is_whole
    kept = fxprune.plan_of(pruned).kept["head.weight"][1]
    assert torch.equal(pruned.pool.weight, model.pool.weight[kept])
    assert fxprune.verify(model, pruned, example_inputs=torch.randn(3, 3, 32, 32)) < 1e-8


class Detector(nn.Module):
    """Gives raw maps in train mode, with those of a head that eval mode has no use for."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.ReLU(), nn.Conv2d(32, 48, 2, 2), nn.ReLU())
        self.boxes, self.classes, self.more = (nn.Conv2d(48, n, 1) for n in (4, 3, 3))

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        x = self.body(x)
        boxes, classes = self.boxes(x), self.classes(x)
        if self.training:
            return {"boxes": boxes, "classes": classes, "more": self.more(x)}
        return torch.cat([boxes.sigmoid(), classes.softmax(1)], 1).flatten(2)


class TwoHeads(nn.Module):
    """Has a second head in train mode, behind a block of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block, self.head = nn.Conv2d(3, 48, 8, 8), Block(), nn.Linear(48, 5)
        self.side, self.second = Block(), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.patches(x).flatten(2).mT
        y = self.head(self.block(x).mean(1))
        return (y, self.second(self.side(x).mean(1))) if self.training else y


def masked(model: nn.Module, pruned: nn.Module) -> nn.Module:
    """The dense model with the channels that are gone set to zero, where that is all there is to it."""
    dense = copy.deepcopy(model)
    for name, kept in fxprune.plan_of(pruned).kept.items():
        t = dense.get_parameter(name).data
        for dim, indices in enumerate(kept):
            if indices is not None:
                gone = torch.ones(t.shape[dim], dtype=torch.bool).index_fill(0, indices, False)
                t.index_fill_(dim, gone.nonzero()[:, 0], 0.0)
    return dense


def test_what_train_mode_alone_returns_comes_back_with_the_class() -> None:
    model, x = randomise(Detector().eval()), torch.randn(2, 3, 32, 32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    assert type(pruned) is Detector and record_of(pruned).own.is_whole
    assert pruned.more.weight.shape == (3, 24, 1, 1)
    wanted, got = masked(model, pruned).train()(x), pruned.train()(x)
    assert all(torch.allclose(got[key], wanted[key], rtol=1e-4, atol=1e-5) for key in wanted)
    sum(t.sum() for t in got.values()).backward()
    assert all(p.grad is not None for p in pruned.parameters())


def test_a_head_of_train_mode_reads_the_channels_that_are_left() -> None:
    model, x = randomise(TwoHeads().eval()), torch.randn(2, 3, 32, 32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    own = record_of(pruned).own
    assert type(pruned) is TwoHeads and own.is_whole, own.parts
    kept = fxprune.plan_of(pruned).kept["head.weight"][1]
    assert torch.equal(pruned.second.weight, model.second.weight[:, kept])
    assert torch.equal(pruned.side.scale, model.side.scale[kept])
    assert [t.shape for t in pruned.train()(x)] == [(2, 5), (2, 5)]


def test_what_train_mode_alone_uses_is_carried_over_from_step_to_step() -> None:
    model, x = randomise(Detector().eval()), torch.randn(2, 3, 32, 32)

    def train(pruned: nn.Module, step: int) -> None:
        with torch.no_grad():
            pruned.more.weight.mul_(2.0)

    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module", steps=3, between=train)
    (kept,) = fxprune.plan_of(pruned).kept["boxes.weight"][1:2]
    assert torch.equal(pruned.more.weight, 4 * model.more.weight[:, kept])


class Masked(nn.Module):
    """Puts a token in the place of patches that a mask covers; a call without one leaves it unused."""

    def __init__(self, two: bool = False) -> None:
        super().__init__()
        self.patches, self.two = nn.Conv2d(3, 48, 8, 8), two
        self.first, self.token = nn.Parameter(torch.ones(1, 1, 48)), nn.Parameter(torch.ones(1, 1, 48))
        if two:  # beside the stream, another axis of as many channels
            self.other = nn.Parameter(torch.ones(48, 48))
        self.block, self.head = Block(), nn.Linear(48, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.patches(x).flatten(2).mT
        if mask is not None:
            x = torch.where(mask[..., None], self.token, x)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        if self.two:
            x = x + F.relu(x @ self.other) @ self.other.detach().mT
        return self.head(self.block(x).mean(1))


def test_a_token_that_the_call_does_not_use_is_as_wide_as_what_stands_beside_it(capture: str) -> None:
    model, x = randomise(Masked().eval()), torch.randn(2, 3, 32, 32)
    mask = torch.arange(32).reshape(2, 16) % 3 == 0
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture, form="module")
    kept = fxprune.plan_of(pruned).kept["first"][2]
    assert pruned.token.shape == (1, 1, 24) and torch.equal(pruned.token, model.token[..., kept])
    graph = fxprune.apply(model, fxprune.plan_of(pruned), example_inputs=(x, mask), capture=capture)
    torch.testing.assert_close(pruned(x, mask), graph(x, mask))


def test_a_token_beside_several_axes_of_its_size_stays_whole() -> None:
    model, x = randomise(Masked(two=True).eval()), torch.randn(2, 3, 32, 32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    assert fxprune.verify(model, pruned) < 1e-8
    assert {*fxprune.plan_of(pruned).groups} and pruned.token.shape == (1, 1, 48)


def test_an_unused_token_is_as_wide_when_it_was_pruned_twice_and_saved(tmp_path: Path) -> None:
    model, x = randomise(Masked().eval()), torch.randn(2, 3, 32, 32)
    pruned = model
    for _ in range(2):
        pruned = fxprune.prune(pruned, 0.25, example_inputs=x, form="module")
    fxprune.save(pruned, tmp_path / "saved")
    loaded = fxprune.load(tmp_path / "saved", model=model)
    mask = torch.arange(32).reshape(2, 16) % 3 == 0
    assert torch.equal(loaded.token, pruned.token) and torch.equal(loaded(x, mask), pruned(x, mask))
