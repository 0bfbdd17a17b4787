"""form="module": a scale that follows the head dim is folded into queries behind rotary embeddings."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import images, small_vit
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.errors import UnsupportedModuleError
from fxprune.passes.shrinking.fold_scales import can_fold
from fxprune.result.forms import graph_form
from fxprune.result.pruned_module import record_of

DIM, HEADS = 48, 4


class Turned(nn.Module):
    """An attention that leaves its scale to torch, and turns or norms its queries before."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed, self.qkv, self.proj = nn.Linear(8, DIM), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.more = nn.Linear(DIM, DIM) if kind in ("joined", "shared") else None
        self.q_bias, self.v_bias = nn.Parameter(torch.ones(DIM)), nn.Parameter(torch.ones(DIM))
        self.register_buffer("k_bias", torch.zeros(DIM))
        self.norm = nn.LayerNorm(DIM // HEADS, elementwise_affine=kind != "bare")

    def turned(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)[:, None] * 0.3
        if self.kind == "complex":
            pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
            return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(3)
        if self.kind == "written":
            turned = torch.empty_like(x)
            turned[..., ::2] = x[..., ::2] * angles.cos() - x[..., 1::2] * angles.sin()
            turned[..., 1::2] = x[..., ::2] * angles.sin() + x[..., 1::2] * angles.cos()
            return turned.type_as(x)
        if self.kind == "apart":
            left, right = x.chunk(2, -1)  # which counts them
            return x * angles.cos() + torch.cat([-right, left], -1) * angles.sin()
        first, rest = x[:, :, :1], x[:, :, 1:]
        halves = torch.stack([-rest[..., 1::2], rest[..., ::2]], -1).reshape(rest.shape)
        return torch.cat([first, rest * angles[1:].cos() + halves * angles[1:].sin()], 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.qkv(x)
        if self.kind == "biases":
            bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
            y = nn.functional.linear(x, self.qkv.weight, bias)
        q, k, v = y.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.kind in ("normed", "bare"):
            q = self.norm(q)
        q, k = self.turned(q), self.turned(q if self.kind == "of itself" else k)
        if self.kind == "joined":  # queries of two layers, side by side
            q = torch.cat([q, self.more(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)], 2)
        if self.kind == "shared":  # one layer makes queries and keys
            q, k = (self.more(t).unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (x, x + 1))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        y = sum(y.split(x.shape[1], 2))
        return x + self.proj(y.transpose(1, 2).flatten(2))


def tokens(batch: int = 2, length: int = 5) -> Tensor:
    return torch.randn(batch, length, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["halves", "apart", "normed", "complex", "biases", "written", "joined"])
def test_a_scale_is_folded_behind_what_is_linear(kind: str) -> None:
    model = randomise(Turned(kind).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=tokens(), attention="head_dim", form="module")
    plan, own = fxprune.plan_of(pruned), record_of(pruned).own
    assert type(pruned) is Turned and own.is_whole and plan.scales, own.parts
    assert fxprune.verify(model, pruned, example_inputs=tokens()) < 1e-8
    for x in (tokens(1), tokens(3, 9)):
        assert torch.allclose(pruned(x), graph_form(pruned)(x), rtol=1e-4, atol=1e-5)
        assert torch.allclose(pruned(x), fxprune.apply(model, plan, example_inputs=tokens())(x), rtol=1e-4)
    rows, ratio = record_of(pruned).folded["norm.weight" if kind == "normed" else "qkv.weight"]
    assert ratio == pytest.approx((pruned.norm.weight.numel() / 12 if kind == "normed" else 0.5) ** 0.5)
    assert rows.tolist() == [*range(len(rows))]  # the query's come first
    if kind == "biases":
        assert torch.allclose(pruned.q_bias, model.q_bias[plan.kept["q_bias"][0]] * ratio)
        assert torch.equal(pruned.v_bias, model.v_bias[plan.kept["v_bias"][0]])
    if kind != "normed":
        assert len(rows) == len(pruned.qkv.weight) - len(pruned.proj.weight.T) - len(rows)


@pytest.mark.parametrize("kind", ["of itself", "shared", "bare"])
def test_a_query_that_shares_its_weights_with_the_key_or_has_no_weights_is_not_scaled(kind: str) -> None:
    model = randomise(Turned(kind).eval())
    analysis = fxprune.analyze(model, example_inputs=tokens())
    (node,) = (n for n in analysis.module.graph.nodes if n.meta.get("default_scale"))
    assert not can_fold(analysis.module, node)
    pruned = fxprune.prune(model, 0.5, example_inputs=tokens(), attention="head_dim", form="module")
    assert fxprune.verify(model, pruned, example_inputs=tokens()) < 1e-8
    assert torch.allclose(pruned(tokens(3)), graph_form(pruned)(tokens(3)), rtol=1e-4, atol=1e-5)


class TakenApart(nn.Module):
    """An attention that leaves its scale to torch; queries lie among what one layer gives."""

    def __init__(self, kind: str, read: str) -> None:
        super().__init__()
        self.kind, self.read = kind, read
        self.embed, self.qkv, self.proj = nn.Linear(8, DIM), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.relative = nn.Parameter(torch.zeros(5, DIM // HEADS))

    def parts(self, y: Tensor) -> tuple[Tensor, ...]:
        if self.kind == "unbind":
            return y.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = y.unflatten(-1, (3, -1)).unflatten(-1, (HEADS, -1))  # batch, token, part, head, dim
        if self.kind == "select":
            y = y.permute(2, 0, 3, 1, 4)
            return y.select(0, 0), y.narrow(0, 1, 1).squeeze(0), y[2]
        y = y.flatten(2, 3)
        parts = y[..., :HEADS, :], y[..., HEADS : 2 * HEADS, :], y[..., 2 * HEADS :, :]
        return tuple(part.transpose(1, 2) for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.parts(self.qkv(x))
        bias = None if self.read == "alone" else q @ self.relative.mT
        bias = bias + (k @ self.relative.mT).mT if self.read == "both" else bias
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return x + self.proj(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("read", ["alone", "queries", "both"])
@pytest.mark.parametrize("kind", ["unbind", "select", "slices"])
def test_queries_are_scaled_where_nothing_else_reads_them_and_else_keys(kind: str, read: str) -> None:
    model = randomise(TakenApart(kind, read).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=tokens(), attention="head_dim", form="module")
    assert fxprune.verify(model, pruned, example_inputs=tokens()) < 1e-8
    plan, record = fxprune.plan_of(pruned), record_of(pruned)
    assert record.own.is_whole is bool(plan.scales) is (read != "both")
    if read != "both":
        rows, ratio = record.folded["qkv.weight"]
        width = pruned.proj.weight.shape[1]
        first = 0 if read == "alone" else width
        assert rows.tolist() == [*range(first, first + width)] and ratio == pytest.approx(0.5**0.5)
        again = fxprune.apply(model, plan, example_inputs=tokens(), form="module")
        assert torch.equal(again.qkv.weight, pruned.qkv.weight)


def test_scales_that_are_folded_in_steps_are_folded_once() -> None:
    model = small_vit()
    options = {"attention": "head_dim", "form": "module", "example_inputs": images()}
    pruned = fxprune.prune(model, 0.5, steps=2, **options)
    assert fxprune.plan_of(pruned).scales and fxprune.verify(model, pruned) < 1e-8


class Shown(nn.Module):
    """An attention that also gives its products as they are, before the scale."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head, self.dim = nn.Linear(8, 3 * DIM), nn.Linear(DIM, 5), DIM // HEADS

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        products = q @ k.transpose(-2, -1)
        y = (products * q.shape[-1] ** -0.5).softmax(-1) @ v
        return self.head(y.transpose(1, 2).flatten(2)), products


def test_a_product_that_is_read_without_its_scale_keeps_it() -> None:
    model = randomise(Shown().eval())
    pruned = fxprune.prune(
        model, 0.5, example_inputs=tokens(), attention="head_dim", form="module", outputs="prune"
    )
    assert fxprune.verify(model, pruned, example_inputs=tokens()) < 1e-8
    for got, wanted in zip(pruned(tokens(3)), graph_form(pruned)(tokens(3)), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5)


class TwoWays(nn.Module):
    """Leaves its attention to torch, or spells it out, by a flag; `rate` may be as large as the scale."""

    def __init__(self, fused: bool, rate: float = 0.0) -> None:
        super().__init__()
        self.fused, self.rate, self.scale = fused, rate, (DIM // HEADS) ** -0.5
        self.qkv, self.proj = nn.Linear(8, 3 * DIM), nn.Linear(DIM, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            rate = self.rate if self.training else 0.0
            y = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        else:
            y = (q * self.scale @ k.mT).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("fused", [True, False])
def test_both_ways_of_an_attention_have_the_new_scale(fused: bool, tmp_path: Path) -> None:
    model = randomise(TwoWays(fused).eval().double())
    x = tokens().double()
    options = {"example_inputs": x, "form": "module"}
    pruned = fxprune.prune(model, 0.5, attention="head_dim", **options)
    again = fxprune.apply(model, fxprune.plan_of(pruned), **options)
    fxprune.save(pruned, tmp_path / "saved")
    loaded = fxprune.load(tmp_path / "saved", model=model)
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-8
    for same in (pruned, again, loaded):
        taken = same(x)
        assert same.scale == pytest.approx(6**-0.5) and fxprune.plan_of(same).scales
        same.fused = not fused
        torch.testing.assert_close(same(x), taken)


def test_another_way_that_no_number_makes_right_is_refused(tmp_path: Path) -> None:
    model = randomise(TwoWays(True, rate=(DIM // HEADS) ** -0.5).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=tokens(), attention="head_dim", form="module")
    fxprune.save(pruned, tmp_path / "saved")
    for same in (pruned, fxprune.load(tmp_path / "saved", model=model)):
        taken, same.fused = same(tokens()), False
        with pytest.raises(UnsupportedModuleError, match="pruned with fused=True"):
            same(tokens())
        same.fused = True
        assert torch.equal(same(tokens()), taken)


def test_a_rate_as_large_as_the_scale_stays_a_rate() -> None:
    model = randomise(TwoWays(True, rate=(DIM // HEADS) ** -0.5).eval())
    del model.scale
    pruned = fxprune.prune(model, 0.5, example_inputs=tokens(), attention="head_dim", form="module")
    assert fxprune.plan_of(pruned).scales and pruned.rate == model.rate


def torchs_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(q, k, v)


class Chosen(nn.Module):
    """Takes the way that a word, a flag of its options, or an argument says; one lies in a function."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.options, self.scale = way, SimpleNamespace(fused=way == "torch"), 8**-0.5
        self.qkv, self.proj = nn.Linear(8, 3 * DIM), nn.Linear(DIM, 8)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).unflatten(-1, (3, DIM // 8, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, fused: bool = False) -> Tensor:
        q, k, v = self.parts(x)
        if fused or self.way == "torch" or self.options.fused:
            y = torchs_attention(q, k, v)
        else:
            y = (q * self.scale @ k.mT).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("way", ["spelled", "torch"])
def test_ways_that_no_flag_of_a_module_says_have_the_new_scale(way: str) -> None:
    model, x = randomise(Chosen(way).eval().double()), tokens().double()
    pruned = fxprune.prune(model, 0.5, example_inputs=x, attention="head_dim", form="module")
    wanted = pruned(x)
    for words, fused, given in itertools.product(("torch", "spelled"), (True, False), (True, False)):
        pruned.way, pruned.options.fused = words, fused
        torch.testing.assert_close(pruned(x, fused=given), wanted)


class Mapped(Chosen):
    """Leaves its attention to torch; a method that no call runs spells it out."""

    def forward(self, x: Tensor) -> Tensor:
        y = torchs_attention(*self.parts(x))
        return x + self.proj(y.transpose(1, 2).flatten(2))

    def maps(self, x: Tensor) -> Tensor:
        q, k, _ = self.parts(x)
        return (q @ k.mT * self.scale).softmax(-1)


def test_methods_that_no_call_runs_have_the_new_scale() -> None:
    """The kept channels of the queries took up the ratio: the maps are those of the pruned attention."""
    model, x = randomise(Mapped("torch").eval().double()), tokens().double()
    pruned = fxprune.prune(model, 0.5, example_inputs=x, attention="head_dim", form="module")
    y = pruned.maps(x) @ pruned.parts(x)[2]
    torch.testing.assert_close(x + pruned.proj(y.transpose(1, 2).flatten(2)), pruned(x))


class Thresholded(nn.Module):
    """Has a threshold that is as large as the scale of the attention inside."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold, self.attention = (DIM // HEADS) ** -0.5, TwoWays(True)
        del self.attention.scale

    def forward(self, x: Tensor, sure: bool = False) -> Tensor:
        y = self.attention(x)
        return y * (y.sigmoid() > self.threshold) if sure else y


def test_a_number_of_a_module_around_an_attention_is_no_scale() -> None:
    model = randomise(Thresholded().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=tokens(), attention="head_dim", form="module")
    assert fxprune.plan_of(pruned).scales and pruned.threshold == model.threshold
