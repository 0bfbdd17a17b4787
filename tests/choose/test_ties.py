"""Parts that code cuts by one number keep one width, whatever a ranking finds in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.result.forms import graph_form
from fxprune.result.own_attention import widths_held
from fxprune.result.pruned_module import record_of

DIM, HEADS, WIDTH = 32, 2, 48

Cut = Callable[[Tensor], tuple[Tensor, ...]]


class Attention(nn.Module):
    """Heads that a cut takes out of one projection; values may be made of two halves of queries' width."""

    def __init__(self, cut: Cut) -> None:
        super().__init__()
        self.cut = cut
        self.enter, self.qkv = nn.Linear(6, DIM), nn.Linear(DIM, 3 * WIDTH)
        self.leave, self.head = nn.Linear(WIDTH, DIM), nn.Linear(DIM, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.cut(self.qkv(x)))
        scores = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.head(x + self.leave((scores @ v).transpose(1, 2).flatten(2)))


class Turned(Attention):
    """Queries and keys turn by pairs of halves, as rotary embeddings do; values do not."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.cut(self.qkv(x)))
        q, k = (torch.cat([-b, a], -1) + t for t in (q, k) for a, b in [t.chunk(2, -1)])
        scores = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.head(x + self.leave((scores @ v).transpose(1, 2).flatten(2)))


CUTS: dict[str, Cut] = {
    "chunk": lambda t: t.chunk(3, -1),
    "split": lambda t: t.split(t.shape[-1] // 3, dim=-1),
}


def dims_of(plan: fxprune.Plan, analysis: fxprune.Analysis) -> list[float]:
    """Return what share of each head dim is kept."""
    names = [g for g in analysis.prunable if g.role == "head_dim"]
    kept = [plan.groups.get(g.name) for g in names]
    return [1.0 if k is None else k.indices.shape[-1] / k.size for k in kept]


def worthless_values(model: nn.Module) -> nn.Module:
    """Let a ranking find that the values matter less than queries and keys."""
    with torch.no_grad():
        model.qkv.weight[2 * WIDTH :] *= 0.01
        model.leave.weight *= 0.01
    return model


def pruned(model: nn.Module, **options: Any) -> tuple[nn.Module, list[float]]:
    x = torch.randn(2, 5, 6)
    scope = {"scope": "global", "floor": 1, "ratios": {"embed": 0.25}}
    small = fxprune.prune(model, 0.4, example_inputs=x, form="module", **{**scope, **options})
    assert fxprune.verify(model, small, example_inputs=torch.randn(1, 7, 6)) < 1e-8
    assert fxprune.verify(model, graph_form(small), example_inputs=x) < 1e-8
    split = options.get("split_qkv", False)
    analysis = fxprune.analyze(model, example_inputs=x, split_qkv=split)
    return small, dims_of(fxprune.plan_of(small), analysis)


@pytest.mark.parametrize("kind", [Attention, Turned])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("target", ["channels", "macs"])
def test_the_users_code_cuts_what_is_left(kind: type[Attention], cut: str, target: str) -> None:
    model = worthless_values(randomise(kind(CUTS[cut]).eval()))
    small, shares = pruned(model, target=target, ratios={})
    assert len(shares) == 2 and shares[0] == shares[1] < 1
    assert type(small) is kind
    assert record_of(small).own.is_whole and not record_of(small).own.spellings


@pytest.mark.parametrize("ratio", [0.3, 0.45])
def test_uniform_shares_are_rounded_alike(ratio: float) -> None:
    """Half as many elements of queries as of values: each rounded for itself, one would keep more."""
    model, x = randomise(Turned(CUTS["chunk"]).eval()), torch.randn(2, 5, 6)
    small = fxprune.prune(model, ratio, example_inputs=x, attention="head_dim", form="module")
    queries, values = dims_of(fxprune.plan_of(small), fxprune.analyze(model, example_inputs=x))
    assert queries == values < 1
    assert record_of(small).own.is_whole and not record_of(small).own.spellings
    assert fxprune.verify(model, small, example_inputs=x) < 1e-8


def test_split_qkv_unties_them() -> None:
    model = worthless_values(randomise(Attention(CUTS["chunk"]).eval()))
    _, (queries, values) = pruned(model, split_qkv=True)
    assert queries != values


def test_sizes_that_the_code_lists_are_not_tied() -> None:
    model = randomise(Attention(lambda t: t.split([WIDTH] * 3, dim=-1)).eval())
    x = torch.randn(2, 5, 6)
    small = fxprune.prune(worthless_values(model), 0.4, example_inputs=x, scope="global", floor=1)
    queries, values = dims_of(fxprune.plan_of(small), fxprune.analyze(model, example_inputs=x))
    assert queries != values


def test_a_ratio_of_its_own_unties_a_group() -> None:
    model = randomise(Attention(CUTS["chunk"]).eval())
    x = torch.randn(2, 5, 6)
    names = [g.name for g in fxprune.analyze(model, example_inputs=x).prunable if g.role == "head_dim"]
    _, shares = pruned(model, ratios={names[0]: 0.25, names[1]: 0.5}, floor=1)
    assert sorted(shares) == [0.5, 0.75]


def test_tied_groups_lose_their_own_least() -> None:
    """One count for both, and of each what it can do best without."""
    model = randomise(Attention(CUTS["chunk"]).eval())
    least = [1, 4, 9], [0, 6, 11]  # of queries and keys, and of values, in each head
    with torch.no_grad():
        for head in range(HEADS):
            for part, gone in ((0, least[0]), (1, least[0]), (2, least[1])):
                rows = [part * WIDTH + head * WIDTH // HEADS + i for i in gone]
                model.qkv.weight[rows] *= 1e-3
                model.qkv.bias[rows] *= 1e-3
            model.leave.weight[:, [head * WIDTH // HEADS + i for i in least[1]]] *= 1e-3
    x = torch.randn(2, 5, 6)
    small = fxprune.prune(model, 0.05, example_inputs=x, scope="global", floor=1, exclude=["enter"])
    analysis = fxprune.analyze(model, example_inputs=x)
    groups = fxprune.plan_of(small).groups
    kept = [groups[g.name].indices for g in analysis.prunable if g.role == "head_dim"]
    assert kept[0].shape == kept[1].shape
    for own, gone in zip(kept, least, strict=True):
        lost = {*range(WIDTH // HEADS)} - {*own[0].tolist()}
        assert lost and (lost <= {*gone} or lost >= {*gone})


class Loop(nn.Module):
    """Heads one after the other, each with a projection of its own; one list of sizes cuts them all."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [WIDTH, WIDTH, WIDTH]
        self.heads = nn.ModuleList([nn.Linear(DIM, 3 * WIDTH) for _ in range(HEADS)])
        self.enter, self.leave = nn.Linear(6, DIM), nn.Linear(HEADS * WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, found = self.enter(x), []
        for head in self.heads:
            q, k, v = head(x).split(self.sizes, -1)
            found.append((q @ k.transpose(-2, -1)).softmax(-1) @ v)
        return self.leave(torch.cat(found, -1))


def test_one_list_cuts_for_every_head() -> None:
    model, x = randomise(Loop().eval()), torch.randn(2, 5, 6)
    with torch.no_grad():
        model.heads[0].weight *= 0.1  # a ranking would take all of the first head
    small = fxprune.prune(model, 0.4, example_inputs=x, form="module", scope="global", floor=1)
    assert record_of(small).own.is_whole and not record_of(small).own.spellings
    assert fxprune.verify(model, small, example_inputs=x) < 1e-8
    first, second = (head.weight.shape[0] for head in small.heads)
    assert first == second < 3 * WIDTH
    assert small.sizes[0] == small.sizes[1]


class Views(nn.Module):
    """Three projections, whose views have one head_dim; the scale is computed of it."""

    def __init__(self, heads: str) -> None:
        super().__init__()
        self.heads, self.count = heads, HEADS
        self.head_dim = WIDTH // HEADS
        self.enter, self.leave = nn.Linear(6, DIM), nn.Linear(WIDTH, 3)
        self.query, self.key, self.value = (nn.Linear(DIM, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        shape = (*x.shape[:-1], -1, self.head_dim)
        if self.heads == "listed":
            shape = (x.shape[0], x.shape[1], self.count, self.head_dim)
        if self.heads == "added":
            shape = x.size()[:-1] + (self.count, self.head_dim)  # noqa: RUF005 (as Hugging Face writes it)
        q = self.query(x).view(shape)
        k = self.key(x).view(shape)
        v = self.value(x).view(shape)
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * self.head_dim**-0.5
        return self.leave(torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2))


@pytest.mark.parametrize("heads", ["counted", "listed", "added"])
def test_views_with_one_head_dim_keep_one(heads: str) -> None:
    model, x = randomise(Views(heads).eval()), torch.randn(2, 5, 6)
    with torch.no_grad():
        for part in (model.value.weight, model.leave.weight):
            part *= 0.01
    small = fxprune.prune(model, 0.4, example_inputs=x, form="module", scope="global", floor=1)
    assert record_of(small).own.is_whole and not record_of(small).own.spellings
    assert small.head_dim == small.value.weight.shape[0] // HEADS < WIDTH // HEADS
    assert fxprune.plan_of(small).scales
    assert fxprune.verify(model, small, example_inputs=torch.randn(1, 7, 6)) < 1e-8
    apart = fxprune.prune(model, 0.4, example_inputs=x, scope="global", floor=1, split_qkv=True)
    assert apart.query.weight.shape != apart.value.weight.shape


class Beside(nn.Module):
    """Words that a view gives the width of the stream, and that the stream attends to."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.enter = nn.Linear(5, DIM), nn.Linear(6, DIM)
        self.query, self.key, self.value = nn.Linear(DIM, 8), nn.Linear(DIM, 8), nn.Linear(DIM, DIM)
        self.head = nn.Linear(DIM, 3)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        x, words = self.enter(x), self.words(words)
        words = words.view(words.shape[0], -1, x.shape[-1])
        scores = (self.query(x) @ self.key(words).transpose(1, 2)).softmax(-1)
        return self.head(x + scores @ self.value(words))


def test_a_width_that_is_read_of_another_tensor_is_that_tensors() -> None:
    model, inputs = randomise(Beside().eval()), (torch.randn(2, 5, 6), torch.randn(2, 4, 5))
    with torch.no_grad():
        model.words.weight *= 0.01
    small = fxprune.prune(model, 0.4, example_inputs=inputs, form="module", scope="global", floor=1)
    assert small.words.weight.shape[0] == small.enter.weight.shape[0] < DIM
    assert record_of(small).own.is_whole and not record_of(small).own.spellings
    assert fxprune.verify(model, small, example_inputs=inputs) < 1e-8
    apart = fxprune.prune(model, 0.4, example_inputs=inputs, scope="global", floor=1, split_qkv=True)
    assert apart.words.weight.shape[0] != apart.enter.weight.shape[0]


class OneWidth(nn.Module):
    """An attention whose code has one width, the stream's, for its heads as well."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.qkv = nn.Linear(6, DIM), nn.Linear(DIM, 3 * DIM)
        self.leave, self.head = nn.Linear(DIM, DIM), nn.Linear(DIM, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head(x + self.leave(y.transpose(1, 2).reshape(b, n, c)))


@pytest.mark.parametrize("way", [{"scope": "global"}, {"attention": "head_dim"}], ids=["global", "uniform"])
def test_heads_are_as_wide_as_the_stream_where_code_reads_that(way: dict[str, str]) -> None:
    model, x = randomise(OneWidth().eval()), torch.randn(2, 5, 6)
    with torch.no_grad():
        model.enter.weight *= 0.01
    small = fxprune.prune(model, 0.3, example_inputs=x, form="module", **way)
    assert record_of(small).own.is_whole and not record_of(small).own.spellings
    assert small.enter.weight.shape[0] == small.leave.weight.shape[1] < DIM
    assert fxprune.verify(model, small, example_inputs=torch.randn(1, 7, 6)) < 1e-8
    apart = fxprune.prune(model, 0.3, example_inputs=x, scope="global", split_qkv=True)
    assert apart.enter.weight.shape[0] != apart.leave.weight.shape[1]


def test_a_budget_that_no_tied_widths_meet_is_met_by_others() -> None:
    """Of 16 elements of a head each is a sixteenth of all: the code is edited then."""
    model, x = randomise(OneWidth().eval()), torch.randn(2, 5, 6)
    for ratio in (0.1, 0.22, 0.4):
        small = fxprune.prune(model, ratio, example_inputs=x, form="module", scope="global", target="params")
        assert fxprune.verify(model, small) < 1e-8


class Straight(nn.Module):
    """Values as wide as what goes out, which stays; queries are cut off beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.more = nn.Linear(6, 3 * DIM), nn.Linear(6, 64)
        self.leave = nn.Linear(64, DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v + self.leave(self.more(x).relu())


def test_what_is_cut_beside_a_width_that_stays_keeps_its_own() -> None:
    model, x = randomise(Straight().eval()), torch.randn(2, 5, 6)
    with torch.no_grad():
        model.qkv.weight[: 2 * DIM] *= 0.01
    small = fxprune.prune(model, 0.3, example_inputs=x, form="module", scope="global", floor=1)
    assert record_of(small).own.is_whole and not record_of(small).own.spellings
    assert small.qkv.weight.shape == (3 * DIM, 6) and small.more.weight.shape[0] < 64
    assert fxprune.verify(model, small, example_inputs=x) < 1e-8
    apart = fxprune.prune(model, 0.3, example_inputs=x, scope="global", floor=1, split_qkv=True)
    assert apart.qkv.weight.shape[0] < 3 * DIM
    asked = fxprune.prune(model, 0.3, example_inputs=x, form="module", attention="head_dim")
    assert fxprune.verify(model, asked, example_inputs=x) < 1e-8


class Torchs(nn.Module):
    """A stream that torch.nn's attention reads, which has one width for all."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(6, DIM), nn.Linear(DIM, 3)
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


def test_torchs_attention_keeps_its_one_width() -> None:
    model, x = randomise(Torchs().eval()), torch.randn(2, 5, 6)
    with torch.no_grad():
        model.enter.weight *= 0.01
    small = fxprune.prune(model, 0.4, example_inputs=x, form="module", scope="global")
    assert type(small.attention) is nn.MultiheadAttention and small.attention.embed_dim < DIM
    assert record_of(small).own.is_whole
    assert fxprune.verify(model, small, example_inputs=torch.randn(1, 7, 6)) < 1e-8
    apart = fxprune.prune(model, 0.4, example_inputs=x, form="module", scope="global", split_qkv=True)
    assert isinstance(apart.attention, nn.MultiheadAttention) and [*widths_held(apart)]
    as_graph = fxprune.prune(model, 0.4, example_inputs=x, scope="global")
    inner = as_graph.attention.out_proj.weight.shape[1]
    assert inner != as_graph.enter.weight.shape[0]
