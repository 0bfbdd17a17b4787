"""form="module": calls in code that are made otherwise on pruned sizes.

Positions that code computes from a width are the original's, the kept ones of them; parts of one size may
have become parts of several.
"""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.result.own_calls import FullWidth, UnevenParts
from fxprune.result.pruned_module import record_of

DIM = 32


def waves(n: int, dim: int, *, like: Tensor) -> Tensor:
    """Sines and cosines of places, of frequencies that follow from the width."""
    rates = torch.exp(torch.arange(dim // 2, device=like.device) * (-math.log(100.0) / (dim // 2)))
    angles = torch.arange(n, device=like.device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1).to(like)


def waves_like(tokens: Tensor) -> Tensor:
    """Reads the tokens for their sizes alone."""
    return waves(tokens.shape[-2], tokens.shape[-1], like=tokens)


class Places(nn.Module):
    """Has no weights, and the width as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = DIM

    def forward(self, mask: Tensor) -> Tensor:
        places = mask.cumsum(1)
        rates = torch.exp(
            torch.arange(self.dim // 2, device=mask.device) * (-math.log(100.0) / (self.dim // 2))
        )
        angles = places[..., None] * rates
        return torch.cat([angles.sin(), angles.cos()], -1)


class Network(nn.Module):
    """Adds waves to its tokens, in one of three ways."""

    def __init__(self, kind: str = "tokens") -> None:
        super().__init__()
        self.kind, self.places = kind, Places()
        self.patches, self.norm = nn.Conv2d(3, DIM, 8, 8), nn.LayerNorm(DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, DIM))
        self.head = nn.Linear(DIM, 5)

    def tokens(self, x: Tensor) -> Tensor:
        return self.patches(x).flatten(2).mT

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        if self.kind == "tokens":
            x = x + waves_like(x)
        elif self.kind == "numbers":
            x = x + waves(x.shape[1], x.shape[2], like=x)
        else:
            x = x + self.places(torch.ones(x.shape[:2], dtype=x.dtype, device=x.device))
        return self.head(self.norm(x + self.mlp(x)).mean(1))


def image(height: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, 32, generator=torch.Generator().manual_seed(0))


def same(a: Callable[[Tensor], Tensor], b: Callable[[Tensor], Tensor]) -> bool:
    images = image(32, 1), image(32, 3), image(64, 2)
    return all(torch.allclose(a(x), b(x), rtol=1e-4, atol=1e-5) for x in images)


@pytest.fixture(scope="module", params=["tokens", "numbers", "places"])
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    model = randomise(Network(request.param).eval())
    return model, fxprune.prune(model, 0.5, example_inputs=image(), form="module")


def test_its_own_code_runs_whole(pair: tuple[nn.Module, nn.Module]) -> None:
    model, pruned = pair
    own = record_of(pruned).own
    assert own.is_whole and type(pruned).__name__ == "Network" and isinstance(pruned, Network)
    assert [type(s.new) for s in own.spellings] == [FullWidth]
    assert pruned.head.in_features < DIM and {*pruned.state_dict()} == {*model.state_dict()}
    assert fxprune.verify(model, pruned, example_inputs=image()) < 1e-8
    assert same(pruned, fxprune.apply(model, fxprune.plan_of(pruned), example_inputs=image()))
    assert pruned.tokens(image()).shape == (2, 16, pruned.head.in_features)


def test_report_and_source_say_so(pair: tuple[nn.Module, nn.Module]) -> None:
    model, pruned = pair
    (said,) = fxprune.report(model, pruned, example_inputs=image()).spelled
    (spelling,) = record_of(pruned).own.spellings
    assert "at full width, of which" in said and "channels are kept" in said
    assert "self._full_width_forward" in inspect.getsource(type(pruned.get_submodule(spelling.path)).forward)


def test_it_trains_in_its_own_code(pair: tuple[nn.Module, nn.Module]) -> None:
    trained = copy.deepcopy(pair[1]).train()
    assert not torch.equal(trained(image()), trained(image()))  # its dropout
    trained(image()).square().mean().backward()
    assert all(p.grad is not None for p in trained.parameters())


def test_copies_and_folders_keep_it(pair: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    model, pruned = pair
    fxprune.save(pruned, tmp_path / "saved", build="mine:make")
    loaded = fxprune.load(tmp_path / "saved", model=copy.deepcopy(model))
    assert record_of(loaded).own == record_of(pruned).own
    for other in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)), loaded):
        assert isinstance(other, Network) and same(other, pruned)


def test_other_tools_take_it(pair: tuple[nn.Module, nn.Module]) -> None:
    pruned, x = pair[1], image()
    exported = torch.export.export(pruned, (x,)).module()
    for other in (
        exported,
        torch.jit.trace(pruned, (x,)),
        torch.compile(pruned, backend="eager", fullgraph=True),
    ):
        assert torch.allclose(other(x), pruned(x), rtol=1e-5, atol=1e-6)
    assert copy.deepcopy(pruned).double()(x.double()).dtype == torch.float64


def test_it_is_pruned_again(pair: tuple[nn.Module, nn.Module], capture: str) -> None:
    pruned = pair[1]
    again = fxprune.prune(pruned, 0.5, example_inputs=image(), form="module", capture=capture)
    assert isinstance(again, Network) and again.head.in_features < pruned.head.in_features
    assert fxprune.verify(pruned, again, example_inputs=image()) < 1e-8
    assert same(again, fxprune.apply(pruned, fxprune.plan_of(again), example_inputs=image(), capture=capture))
    assert same(pickle.loads(pickle.dumps(again)), again)


class Heads(nn.Module):
    """Cuts queries, keys and values out of one projection, in one of two ways."""

    def __init__(self, cuts: str) -> None:
        super().__init__()
        self.heads, self.cuts = 2, cuts
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        y = self.qkv(x)
        parts = y.chunk(3, dim=-1) if self.cuts == "chunk" else torch.split(y, y.shape[-1] // 3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in parts)
        y = ((q @ k.mT) * 0.25).softmax(-1) @ v.cumsum(-1)  # whose channels are in order: all stay
        return self.proj(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("cuts", ["chunk", "split"])
def test_parts_of_one_size_become_parts_of_several(cuts: str, tmp_path: Path) -> None:
    model = randomise(nn.Sequential(nn.Linear(8, DIM), Heads(cuts), nn.Linear(DIM, 4)).eval())
    x = torch.randn(2, 6, 8)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, attention="head_dim", form="module")
    own = record_of(pruned).own
    assert own.is_whole and UnevenParts in {type(s.new) for s in own.spellings}
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-8
    graph = fxprune.apply(model, fxprune.plan_of(pruned), example_inputs=x)
    fxprune.save(pruned, tmp_path / "saved", build="mine:make")
    loaded = fxprune.load(tmp_path / "saved", model=copy.deepcopy(model))
    for other in (graph, loaded, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        for y in (torch.randn(1, 6, 8), torch.randn(3, 9, 8)):
            assert torch.allclose(other(y), pruned(y), rtol=1e-4, atol=1e-5)
    exported = torch.export.export(pruned, (x,)).module()
    assert torch.allclose(exported(x), pruned(x), rtol=1e-5, atol=1e-6)
    pruned(x).square().mean().backward()
    assert all(p.grad is not None for p in pruned.parameters())
    again = fxprune.prune(pruned, 0.5, example_inputs=x, attention="head_dim", form="module")
    assert fxprune.verify(pruned, again, example_inputs=x) < 1e-8


class TheirAttention(nn.MultiheadAttention):
    """Of a class of its own, which knows one width."""


class Pooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.probe, self.attention = nn.Parameter(torch.randn(1, 1, DIM)), TheirAttention(DIM, 4)
        self.norm, self.fc = nn.LayerNorm(DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(self.probe.repeat(1, x.shape[1], 1), x, x)[0]
        return y + self.fc(self.norm(y))


class Unpooled(nn.Module):
    """Pools, and returns what it has not pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.pool, self.head = nn.Linear(8, DIM), Pooling(), nn.Linear(DIM, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        self.pooled = self.pool(x)
        return self.head(x)


def test_a_module_whose_result_nobody_uses_returns_nothing() -> None:
    model, x = randomise(Unpooled().eval()), torch.randn(2, 6, 8)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    ((path, why),) = record_of(pruned).own.replaced
    assert isinstance(pruned, Unpooled) and path == "pool" and "embedding dimension" in why
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-8
    pruned(x)
    assert pruned.pooled is None


class PlacesOfTwoAxes(nn.Module):
    """Half of the channels say the row, half the column: neither half is kept in whole."""

    def __init__(self, waves: int, scaled: bool) -> None:
        super().__init__()
        self.waves, self.scaled = waves, scaled

    def forward(self, x: Tensor) -> Tensor:
        there = x.new_ones(x.shape[0], x.shape[2], x.shape[3])
        rows, columns = there.cumsum(1), there.cumsum(2)
        if self.scaled:
            rows, columns = rows / rows[:, -1:, :], columns / columns[:, :, -1:]
        rates = torch.arange(self.waves, device=x.device, dtype=x.dtype)
        rates = 100 ** (2 * (rates // 2) / self.waves)
        rows, columns = rows[..., None] / rates, columns[..., None] / rates
        rows = torch.stack((rows[..., 0::2].sin(), rows[..., 1::2].cos()), dim=4).flatten(3)
        columns = torch.stack((columns[..., 0::2].sin(), columns[..., 1::2].cos()), dim=4).flatten(3)
        return torch.cat((rows, columns), dim=3).permute(0, 3, 1, 2)


class SeesPlaces(nn.Module):
    def __init__(self, width: int, scaled: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.places = PlacesOfTwoAxes(width // 2, scaled)
        self.attn = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        places = self.places(x).flatten(2).transpose(1, 2)
        x = x.flatten(2).transpose(1, 2)
        q = x + places
        return self.head(self.norm(x + self.attn(q, q, x, need_weights=False)[0]).mean(1))


@pytest.mark.parametrize(("width", "scaled"), [(32, False), (32, True), (48, False)])
def test_places_of_two_axes_are_computed_in_whole(width: int, scaled: bool) -> None:
    model = SeesPlaces(width, scaled).double().eval()
    randomise(model)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    assert isinstance(pruned, SeesPlaces) and not fxprune.report(model, pruned).replaced
    graph = fxprune.apply(model, fxprune.plan_of(pruned), example_inputs=x)
    for size in ((3, 32, 32), (1, 48, 32)):
        given = torch.randn(size[0], 3, *size[1:], dtype=torch.float64)
        torch.testing.assert_close(pruned(given), graph(given), rtol=0, atol=1e-10)
    assert pruned.norm.weight.numel() == width // 2
