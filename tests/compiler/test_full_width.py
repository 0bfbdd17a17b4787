"""form="module": positions that code computes from a width are the original's, the kept ones of them."""

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
from fxprune.result.full_width import FullWidth
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
