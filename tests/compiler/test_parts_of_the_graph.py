"""form="module": what stands in the place of a module is given what the module is given, and no more."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.errors import InputArgumentError, InputSizeError
from fxprune.result.forms import graph_form
from fxprune.result.pruned_module import record_of


def wrapped(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return what calls a method and does not say which, so that its code stays as it is written."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    call.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    return call


class Rigid(nn.Module):
    """An attention that takes its head dim from the width of its input; pools keys by height and width."""

    def __init__(self, dim: int = 48, heads: int = 4, *, pools: bool = False) -> None:
        super().__init__()
        self.heads, self.pools = heads, pools
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    @wrapped
    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        b, n, c = x.shape
        y = x
        if self.pools:
            y = F.avg_pool2d(x.mT.reshape(b, c, height, width), 2).flatten(2).mT
        q = self.q(x).reshape(b, n, self.heads, c // self.heads).transpose(1, 2)
        k, v = self.kv(y).reshape(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Image(nn.Module):
    """Hands its attention the grid's sizes, and tokens that a dropout gives."""

    def __init__(self, *, pools: bool = False) -> None:
        super().__init__()
        self.patches, self.drop = nn.Conv2d(3, 48, 8, 8), nn.Dropout(0.5)
        self.attention, self.head = Rigid(pools=pools), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        height, width = x.shape[-2:]
        assert self.attention.pools in (True, False)  # a switch that code asks another module for
        x = self.drop(x.flatten(2).mT)
        return self.head((x + self.attention(x, height, width)).mean(1))


def image(height: int = 32, width: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pools", [False, True])
def test_a_part_is_given_sizes_and_what_a_dropout_gives(pools: bool) -> None:
    model, x = randomise(Image(pools=pools).eval()), image()
    options = {"ratios": {"attention.heads*": 0.25}, "attention": "heads"}
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module", **options)
    assert type(pruned) is Image and [p.path for p in record_of(pruned).own.parts] == ["attention"]
    assert fxprune.verify(model, pruned, example_inputs=image(batch=3)) < 1e-8
    for size in ((32, 32), (48, 32), (16, 64)):
        for batch in (1, 5):
            y = image(*size, batch=batch)
            assert torch.allclose(pruned(y), graph_form(pruned)(y), rtol=1e-4, atol=1e-5)
    pruned.train()
    drawn = []
    for form in (pruned, graph_form(pruned)):
        torch.manual_seed(1)
        drawn.append(form(x))
    assert torch.allclose(*drawn, rtol=1e-4, atol=1e-5)


class Optional(Rigid):
    """Takes what its callers may leave out, and goes another way for a high grid."""

    @wrapped
    def forward(
        self,
        x: Tensor,
        height: int,
        width: int,
        mask: Tensor | None = None,
        scale: float = 1.0,
        **more: Any,
    ) -> Tensor:
        y = Rigid.forward(self, x, height, width) * more.get("times", scale)
        y = y * 2 if height > 4 else y
        return y if mask is None else y * mask


def test_a_part_refuses_what_its_graph_does_not_compute(tmp_path: Path) -> None:
    model, x = randomise(Image().eval()), image()
    model.attention = randomise(Optional().eval())
    options = {"ratios": {"attention.heads*": 0.25}, "attention": "heads"}
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module", **options)
    assert [p.path for p in record_of(pruned).own.parts] == ["attention"]
    fxprune.save(pruned, tmp_path / "saved")
    for same in (pruned, fxprune.load(tmp_path / "saved", model=model)):
        assert torch.allclose(same(image(32, 16)), graph_form(same)(image(32, 16)), rtol=1e-4, atol=1e-5)
        for form in (same, graph_form(same)):
            with pytest.raises(InputSizeError, match="another branch"):
                form(image(64, 32))
        tokens = torch.randn(2, 16, same.attention.q.in_features)
        torch.testing.assert_close(
            same.attention(tokens, 4, 4, None, scale=1.0), same.attention(tokens, 4, 4)
        )
        for other in ({"mask": torch.ones(2, 16, 1)}, {"scale": 0.0}, {"times": 2.0}):
            with pytest.raises(InputArgumentError, match="attention is a part of the pruned graph"):
                same.attention(tokens, 4, 4, **other)


class Clamped(Rigid):
    """Makes a number that half precision can't hold."""

    @wrapped
    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        y = Rigid.forward(self, x, height, width)
        return y.float().clamp_min(torch.tensor(-1e9)).to(y.dtype)


def test_what_the_code_of_a_part_makes_keeps_its_precision() -> None:
    model = randomise(Image().eval())
    model.attention = randomise(Clamped().eval())
    options = {"ratios": {"attention.heads*": 0.25}, "attention": "heads"}
    pruned = fxprune.prune(model, 0.5, example_inputs=image(), form="module", **options)
    assert [p.path for p in record_of(pruned).own.parts] == ["attention"]
    for same in (pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert [(t.dtype, float(t)) for t in same.half().buffers()] == [(torch.float32, -1e9)]
        assert next(same.parameters()).dtype == torch.float16


class AnyWords(Rigid):
    """Takes its grid by any words."""

    @wrapped
    def forward(self, x: Tensor, *more: Any, height: int, **sizes: int) -> Tensor:
        assert not more
        return super().forward(x, height, sizes["width"])


class Words(Image):
    def __init__(self) -> None:
        super().__init__()
        self.attention = AnyWords(pools=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        height, width = x.shape[-2:]
        x = x.flatten(2).mT
        return self.head((x + self.attention(x, height=height, width=width)).mean(1))


def test_a_part_takes_words_of_any_name() -> None:
    model, x = randomise(Words().eval()), image()
    options = {"ratios": {"attention.heads*": 0.25}, "attention": "heads"}
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module", **options)
    assert [p.path for p in record_of(pruned).own.parts] == ["attention"]
    assert fxprune.verify(model, pruned, example_inputs=image(batch=3)) < 1e-8
    for y in (image(48, 32, batch=1), image(16, 64, batch=5)):
        assert torch.allclose(pruned(y), graph_form(pruned)(y), rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.fx.symbolic_trace(pruned)(x), pruned(x))


class Cached(nn.Module):
    """Adds its keys to a cache that its caller keeps, as generating text does."""

    def __init__(self, dim: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.groups, self.head_dim = heads, heads // 2, dim // heads
        self.q, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.k, self.v = (nn.Linear(dim, dim // 2) for _ in range(2))

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        q, k, v = (
            to(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for to in (self.q, self.k, self.v)
        )
        if cache.keys is not None:
            k, v = torch.cat([cache.keys, k], 2), torch.cat([cache.values, v], 2)
        cache.keys, cache.values = k, v
        k, v = (t.repeat_interleave(self.groups, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones_like(q @ x.new_zeros(k.shape).mT))
        return self.out(y.transpose(1, 2).flatten(2))


class Generating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(8, 48), nn.ModuleList([Cached(), Cached()])
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x, cache=SimpleNamespace(keys=None, values=None))
        return self.head(x)


def test_a_call_that_fills_a_cache_can_be_tried_again() -> None:
    model, x = randomise(Generating().eval()), torch.randn(2, 5, 8)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, attention="heads", form="module")
    own = record_of(pruned).own
    assert type(pruned) is Generating and own.is_whole, own.parts
    assert fxprune.verify(model, pruned, example_inputs=torch.randn(3, 7, 8)) < 1e-8


class Bare(nn.Module):
    """Norms by a layer without weights, and by weights of its own."""

    def __init__(self, dim: int = 48) -> None:
        super().__init__()
        self.norm, self.gain = nn.LayerNorm(dim, elementwise_affine=False), nn.Parameter(torch.ones(dim))
        self.fc1, self.fc2 = nn.Linear(dim, 96), nn.Linear(96, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x) * self.gain)))


def test_a_norm_without_weights_has_the_new_size(capture: str) -> None:
    model = randomise(nn.Sequential(nn.Linear(8, 48), Bare(), Bare(), nn.Linear(48, 5)).eval())
    x = torch.randn(2, 5, 8)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture, form="module")
    own = record_of(pruned).own
    assert type(pruned) is nn.Sequential and own.is_whole, own.parts
    assert tuple(pruned[1].norm.normalized_shape) == (24,) and tuple(model[1].norm.normalized_shape) == (48,)
    assert fxprune.verify(model, pruned, example_inputs=torch.randn(3, 5, 8)) < 1e-8


class ReturnsMore(nn.Module):
    """Returns what nobody uses beside what its caller takes; its width is a number in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(48, 64), nn.Linear(64, 48)

    @wrapped
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.inner(x).reshape(*x.shape[:2], 4, 16)
        return self.out(x.relu().flatten(2)), x.softmax(-1).mean(2)


class TakesTheFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.more, self.head = nn.Conv2d(3, 48, 8, 8), ReturnsMore(), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        return self.head((x + self.more(x)[0]).mean(1))


def test_what_nobody_uses_need_not_be_returned(capture: str) -> None:
    model, x = randomise(TakesTheFirst().eval()), torch.randn(2, 3, 32, 32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture, form="module")
    own = record_of(pruned).own
    assert type(pruned) is TakesTheFirst and [part.path for part in own.parts] == ["more"]
    assert fxprune.verify(model, pruned, example_inputs=torch.randn(3, 3, 32, 32)) < 1e-8
    assert pruned.more(torch.randn(1, 4, 24))[1] is None


class CopiesATable(nn.Module):
    """Adds a table that is no parameter and no buffer, by a copy of it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 48, 8, 8), nn.Linear(48, 5)
        self.table = torch.randn(1, 16, 48)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        return self.head(F.gelu(x + self.table.detach().clone().to(x)).mean(1))


def test_a_table_of_which_the_graph_has_a_copy_takes_its_width(capture: str) -> None:
    model, x = randomise(CopiesATable().eval()), torch.randn(2, 3, 32, 32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture, form="module")
    assert type(pruned) is CopiesATable and record_of(pruned).own.is_whole
    assert pruned.table.shape == (1, 16, 24)
    assert fxprune.verify(model, pruned, example_inputs=torch.randn(1, 3, 32, 32)) < 1e-8
