"""The same function in other coordinates: random bases of every freedom that the analysis claims."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
import transformers
from helpers import by_capture
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.errors import OptionError


def vit(**options: object) -> nn.Module:
    sizes = dict(img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=3, num_classes=5)
    return timm.models.VisionTransformer(**(sizes | options))


def swin() -> nn.Module:
    return timm.models.SwinTransformer(
        img_size=28, patch_size=2, window_size=7, embed_dim=12, depths=(1, 2), num_heads=(1, 2), num_classes=5
    )


def pvt() -> nn.Module:
    return timm.models.PyramidVisionTransformerV2(
        depths=(1, 1, 1, 1),
        embed_dims=(8, 16, 24, 32),
        num_heads=(1, 2, 3, 4),
        sr_ratios=(2, 2, 1, 1),
        mlp_ratios=(2, 2, 2, 2),
        num_classes=5,
    )


def hf_vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        image_size=32,
        patch_size=16,
    )
    return transformers.ViTForImageClassification(config)


def tv_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 16, 2, 3, 24, 40, num_classes=5)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "vit with layer scale": lambda: vit(init_values=0.1),
    "vit with normed queries": lambda: vit(qk_norm=True),
    "vit averaged": lambda: vit(global_pool="avg", fc_norm=True, class_token=False),
    "swin": swin,
    "pvt": pvt,
    "hf": hf_vit,
    "torchvision": tv_vit,
}


def ready(model: nn.Module) -> nn.Module:
    randomise(model, 0)
    return model.double().eval()


def largest_difference(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        wanted, got = model(x), other(x)
    if not isinstance(wanted, Tensor):
        wanted, got = wanted.logits, got.logits
    return float((wanted - got).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(("name", "capture"), by_capture(MODELS, 2))
def test_random_bases_change_weights_and_not_the_function(name: str, capture: str) -> None:
    model = ready(MODELS[name]())
    size = 28 if name == "swin" else 32
    x = torch.randn(3, 3, size, size, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    other = fxprune.rebase(model, example_inputs=x, capture=capture, seed=1)
    assert type(other) is type(model)
    changed = [n for n, t in other.state_dict().items() if not torch.equal(t, before[n])]
    assert len(changed) >= 4
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()), "the original was changed"
    for images in (x, x[:1], torch.randn(5, 3, size, size, dtype=torch.float64)):
        assert largest_difference(model, other, images) < 1e-10


def freedoms(model: nn.Module, **options: object) -> dict[str, str]:
    return {g.name: str(g.freedom) for g in fxprune.analyze(model, **options).prunable}


def test_what_a_vit_allows() -> None:
    model = ready(vit())
    found = freedoms(model)
    assert found["embed"] == "rotation"
    assert found["blocks.0.attn.head_dim"] == "any"
    assert found["blocks.0.mlp.hidden"] == found["blocks.0.attn.heads"] == "permutation"
    analysis = fxprune.analyze(model)
    named = {g.name: g for g in analysis.groups}
    (stream,) = named["embed"].regions
    assert stream.centred and "norm1" in str(named["embed"].limited_by)
    assert "gelu" in str(named["blocks.0.mlp.hidden"].limited_by)
    # queries and keys change by one matrix, values by another, though one projection makes all three
    assert set(named["blocks.0.attn.head_dim"].bases) == {f"blocks.0.attn.head_dim:{i}" for i in (0, 1)}
    pair, values = named["blocks.0.attn.head_dim"].regions
    assert {p.part[0][1]: p.side for p in pair.places} == {0: 1, 1: -1}  # of [q | k | v]
    assert {p.name: p.side for p in values.places}["blocks.0.attn.proj.weight"] == -1
    assert set(freedoms(model, split_qkv=True).values()) == {"rotation", "any", "permutation"}


def test_two_affine_norms_between_queries_and_keys_leave_permutations() -> None:
    found = freedoms(ready(vit(qk_norm=True)))
    assert found["blocks.0.attn.head_dim"] == "permutation"
    model = ready(vit(qk_norm=True))
    named = {g.name: g for g in fxprune.analyze(model).groups}
    assert {str(r.freedom) for r in named["blocks.0.attn.head_dim"].regions} == {"permutation", "any"}


def test_a_norm_of_zero_weight_cannot_be_folded() -> None:
    model = ready(vit())
    with torch.no_grad():
        model.blocks[0].norm1.weight[3] = 0
    embed = {g.name: g for g in fxprune.analyze(model).groups}["embed"]
    assert str(embed.freedom) == "permutation" and "zeros" in str(embed.limited_by)


def test_matrices_of_ones_own() -> None:
    model = ready(vit())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    per_head = torch.randn(3, 8, 8, dtype=torch.float64)
    for matrix in (per_head, per_head[0]):
        other = fxprune.rebase(model, {"blocks.1.attn.head_dim:1": matrix})
        assert largest_difference(model, other, x) < 1e-10
        weight = model.blocks[1].attn.qkv.weight.detach().unflatten(0, (3, 3, 8))
        wanted = matrix[0] @ weight[2, 0] if matrix.ndim == 3 else matrix @ weight[2, 0]
        got = other.blocks[1].attn.qkv.weight.detach().unflatten(0, (3, 3, 8))
        assert torch.allclose(got[2, 0], wanted) and torch.equal(got[:2], weight[:2])


@pytest.mark.parametrize(
    ("bases", "said"),
    [
        ({"embed": torch.randn(24, 24)}, "rotations only"),
        ({"embed": torch.diag(torch.tensor([-1.0] + [1.0] * 23))}, "ones"),
        ({"embed": torch.eye(23)}, "shape"),
        ({"blocks.0.mlp.hidden": torch.eye(96)}, "gelu"),
        ({"blocks.0.attn.head_dim:0": torch.zeros(8, 8)}, "inverse"),
        ({"nothing": torch.eye(3)}, "no basis"),
    ],
)
def test_a_matrix_that_is_not_allowed_is_refused(bases: dict[str, Tensor], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        fxprune.rebase(ready(vit()), bases)


def test_it_shrinks_as_any_model() -> None:
    model = ready(vit())
    other = fxprune.rebase(model)
    assert fxprune.verify(other, fxprune.prune(other, 0.5)) < 1e-8


def test_halves_keep_their_dtype_and_parameters_train() -> None:
    model = ready(vit()).float()
    other = fxprune.rebase(model)
    assert {t.dtype for t in other.state_dict().values()} == {torch.float32}
    other(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in other.parameters())


# ---------------------------------------------------------------- kinds that once went wrong


class TwoParts(nn.Module):
    """A projection of two parts of other structure: the second has none of what takes the first apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 12 + 6), nn.Linear(6, 4)
        self.pair = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).split([12, 6], -1)
        left, right = a.reshape(*a.shape[:-1], 6, 2).unbind(-1)
        return self.out(b) + self.pair(left) * self.pair(right)


class ByNumber(nn.Module):
    """Queries and values of one projection taken by number, one as a slice: a sum of two parts of one."""

    def __init__(self) -> None:
        super().__init__()
        self.qv, self.k, self.out = nn.Linear(6, 2 * 2 * 4), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        qv = self.qv(x).reshape(*x.shape[:2], 2, 2, 4).permute(2, 0, 3, 1, 4)
        q, v = qv[0:1].transpose(0, 1)[:, 0], qv[1]
        k = self.k(x).reshape(*x.shape[:2], 2, 4).transpose(1, 2)
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class HeadsInTheStream(nn.Module):
    """Values per head go into a stream that has the same heads, with elementwise attention scores."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.out, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.k = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        v, k = (f(x).reshape(b, n, 2, 4).transpose(1, 2) for f in (self.v, self.k))
        scores = (k.cos() @ k.sin().transpose(-2, -1)).softmax(-1)
        y = self.out((scores @ v).transpose(1, 2).flatten(2))
        return self.head(y + k.transpose(1, 2).flatten(2))


class ByHand(nn.Module):
    """Norms and cosine attention written out."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed, self.q, self.k, self.v = (nn.Linear(i, o) for i, o in ((5, 8), (8, 6), (8, 6), (8, 8)))
        self.scale, self.shift = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.kind == "rms":
            y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        elif self.kind == "layer":
            c = x - x.mean(-1, keepdim=True)
            y = self.scale * c / torch.sqrt((c * c).mean(-1, keepdim=True) + 1e-6) + self.shift
        elif self.kind == "norm":
            y = x / x.norm(dim=-1, keepdim=True) * self.scale
        else:
            y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()
        q, k = self.q(y), self.k(y)
        q, k = (t / (t * t).sum(-1, keepdim=True).sqrt() for t in (q, k))
        return self.head(x + (q @ k.transpose(-2, -1)) @ self.v(y))


class Channels(nn.Module):
    """Attention among channels: an axis that lies on both dimensions of one value."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        gram = a.transpose(-2, -1) @ a / a.shape[1]
        return self.out(self.b(x) + self.b(x) @ gram)


SMALL: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "two parts": (TwoParts, {"first.weight[0]": "any"}),
    "by number": (ByNumber, {}),
    "heads in the stream": (HeadsInTheStream, {}),
    "rms by hand": (lambda: ByHand("rms"), {"embed.weight[0]": "rotation", "q.weight[0]": "rotation"}),
    "layer norm by hand": (lambda: ByHand("layer"), {"q.weight[0]": "rotation"}),
    "norm by hand": (lambda: ByHand("norm"), {"embed.weight[0]": "rotation"}),
    "variance by hand": (lambda: ByHand("var"), {"embed.weight[0]": "rotation"}),
    "channels": (Channels, {}),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_models_of_a_kind(name: str, capture: str) -> None:
    build, freedoms = SMALL[name]
    model = ready(build())
    width = next(p.shape[1] for p in model.parameters() if p.ndim == 2)
    x = torch.randn(3, 7, width, dtype=torch.float64)
    analysis = fxprune.analyze(model, example_inputs=x, capture=capture)
    other = fxprune.rebase(model, example_inputs=x, capture=capture)
    assert any(group.bases for group in analysis.groups), "nothing is free: nothing is tested"
    for values in (x, x[:1], torch.randn(2, 4, width, dtype=torch.float64)):
        assert largest_difference(model, other, values) < 1e-10
    for site, freedom in freedoms.items():
        assert {str(g.freedom) for g in analysis.group_of(site) if g.frozen is None} == {freedom}, str(
            analysis
        )
