"""Tables that a user's code computes anew keep the channels that the plan keeps."""

import ast
import copy
import pickle

import pytest
import torch
from torch import nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.errors import UnsupportedModuleError
from fxprune.result.own_spelling import source_of, spelled_anew
from fxprune.result.own_tables import beneath_tables
from fxprune.result.pruned_module import record_of

HEADS, WIDTH = 2, 48
SIZE = WIDTH // HEADS


class Rotary(nn.Module):
    """Sines of positions, as wide as a head; computed when it is built, cast and resized."""

    def __init__(self, tokens: int, asks: bool) -> None:
        super().__init__()
        self.size, self.asks = SIZE, asks
        self.register_buffer("table", self.computed(tokens), persistent=False)

    def computed(self, tokens: int) -> torch.Tensor:
        turns = torch.arange(tokens)[:, None] / 100 ** (torch.arange(self.size // 2) / (self.size // 2))
        return torch.cat([turns.sin(), turns.sin(), turns.cos(), turns.cos()], -1)

    def resize(self, tokens: int) -> None:
        self.table = self.computed(tokens).to(self.table.dtype)

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        if self.table.dtype == torch.float64:
            self.register_buffer("table", self.computed(len(self.table)).double(), persistent=False)
        return self

    def forward(self, q: torch.Tensor) -> torch.Tensor:
        sines, cosines = self.table.split(self.size, -1) if self.asks else self.table.chunk(2, -1)
        first, second = q.chunk(2, -1)
        return q * cosines + torch.cat([-second, first], -1) * sines


class Network(nn.Module):
    def __init__(self, tokens: int, asks: bool) -> None:
        super().__init__()
        self.rotary = Rotary(tokens, asks)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        q, k = self.rotary(q), self.rotary(k)
        weights = (q @ k.transpose(-2, -1) * SIZE**-0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, -1))


def prunes(asks: bool) -> tuple[Network, Network]:
    torch.manual_seed(0)
    model = randomise(Network(6, asks).eval())
    model.rotary.resize(6)
    x = torch.randn(2, 6, WIDTH)
    return model, fxprune.prune(model, 0.5, attention="head_dim", example_inputs=x, form="module")


def wanted(model: Network, pruned: Network, tokens: int) -> torch.Tensor:
    """Prune the same way what was resized before."""
    there = pruned.rotary.table
    kept = [i for i in range(2 * SIZE) if any(torch.equal(model.rotary.table[:, i], c) for c in there.T)]
    return model.rotary.computed(tokens)[:, kept]


def test_resizes_a_table_that_forward_asks_no_width_of(tmp_path) -> None:
    model, pruned = prunes(asks=False)
    table = wanted(model, pruned, 9)
    assert table.shape[1] == SIZE and pruned.rotary.size == SIZE
    fxprune.save(pruned, tmp_path)
    loaded = fxprune.load(tmp_path, model=model)
    for clone in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)), loaded):
        clone.rotary.resize(9)
        assert torch.equal(clone.rotary.table, table)
        assert clone(torch.randn(1, 9, WIDTH)).shape == (1, 9, 5)
    again = fxprune.prune(pruned, 0.5, attention="head_dim", form="module")
    again.rotary.resize(9)
    assert again.rotary.table.shape == (9, SIZE // 2)
    assert again(torch.randn(1, 9, WIDTH)).shape == (1, 9, 5)


def test_casts_a_table_whose_width_forward_asks_for() -> None:
    pruned = prunes(asks=True)[1]
    assert pruned.rotary.size == SIZE // 2 and record_of(pruned).own.is_whole
    before = pruned.rotary.table.clone()
    assert torch.allclose(pruned.double().rotary.table, before.double(), atol=1e-6)
    assert pruned.rotary.size == SIZE // 2


def test_a_table_is_cast_after_two_prunes() -> None:
    pruned = prunes(asks=True)[1]
    again = fxprune.prune(pruned, 0.5, attention="head_dim", form="module")
    before = again.rotary.table.clone()
    assert before.shape[1] == SIZE // 2
    assert torch.allclose(again.double().rotary.table, before.double(), atol=1e-6)


def test_code_is_edited_beneath_what_keeps_tables() -> None:
    rotary = prunes(asks=True)[1].rotary
    source = source_of(Rotary.forward)
    assert source is not None
    number = next(n for n in ast.walk(source.node) if isinstance(n, ast.Constant) and n.value == 2)
    with beneath_tables(rotary):
        spelled_anew(rotary, [source.place(number)])
    vars(rotary)[source.place(number).attribute] = 2
    for other in (copy.deepcopy(rotary), pickle.loads(pickle.dumps(rotary))):
        assert type(other) is type(rotary) and type(rotary).__name__ == "Rotary"
        assert torch.equal(other.double().table, rotary.double().table)


def test_refuses_a_table_of_the_pruned_width() -> None:
    pruned = prunes(asks=True)[1]
    pruned.rotary.table = pruned.rotary.table.clone()
    with pytest.raises(UnsupportedModuleError, match="computed anew, at the pruned width"):
        pruned.rotary.resize(9)
    assert torch.equal(pruned(torch.ones(1, 6, WIDTH)), pruned(torch.ones(1, 6, WIDTH)))
