"""torch.nn's attention with widths of its own, beside torch.nn's where that can hold them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.result.own_attention import MultiheadAttention, widths_held
from fxprune.result.pruned_module import record_of

DIM, HEADS, TOKENS = 24, 4, 5


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KINDS: Mapping[str, Mapping[str, Any]] = {
    "batch first": {"batch_first": True},
    "sequence first": {},
    "without biases": {"bias": False, "batch_first": True},
    "other keys and values": {"kdim": 12, "vdim": 16, "batch_first": True},
    "learned keys": {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
}
CALLS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "without weights": {"need_weights": False},
    "each head's weights": {"average_attn_weights": False},
    "padding": {"key_padding_mask": torch.arange(TOKENS)[None] > torch.tensor([[2], [4]])},
    "causal": {"attn_mask": torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1), "is_causal": True},
    "a hint that the mask does not bear out": {
        "attn_mask": noise(TOKENS, TOKENS, seed=8),
        "is_causal": True,
        "need_weights": False,
    },
    "a mask for each head": {"attn_mask": noise(2 * HEADS, TOKENS, TOKENS, seed=7), "need_weights": False},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_torchs_does(kind: str, call: str) -> None:
    theirs = randomise(nn.MultiheadAttention(DIM, HEADS, **KINDS[kind])).double().eval()
    ours = copy.deepcopy(theirs)
    ours.__class__ = MultiheadAttention
    widths = DIM, theirs.kdim, theirs.vdim
    given = [noise(2, TOKENS, width, seed=i) for i, width in enumerate(widths)]
    if not theirs.batch_first:
        given = [t.transpose(0, 1) for t in given]
    for wanted, got in zip(theirs(*given, **CALLS[call]), ours(*given, **CALLS[call]), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    if theirs.kdim == theirs.vdim == DIM:
        one = given[:1] * 3
        torch.testing.assert_close(ours(*one, **CALLS[call])[0], theirs(*one, **CALLS[call])[0])


def test_it_takes_no_batch_and_refuses_what_torchs_refuses() -> None:
    theirs = randomise(nn.MultiheadAttention(DIM, HEADS)).double().eval()
    ours = copy.deepcopy(theirs)
    ours.__class__ = MultiheadAttention
    x, mask = noise(TOKENS, DIM), noise(HEADS, TOKENS, TOKENS)
    torch.testing.assert_close(ours(x, x, x, attn_mask=mask)[0], theirs(x, x, x, attn_mask=mask)[0])
    with pytest.raises(RuntimeError, match="attn_mask"):
        ours(x, x, x, is_causal=True)


@pytest.mark.parametrize(
    "masks",
    [
        {"attn_mask": torch.zeros(TOKENS, TOKENS, dtype=torch.int64)},
        {"key_padding_mask": torch.zeros(2, TOKENS, dtype=torch.uint8)},
        {"attn_mask": torch.zeros(1, TOKENS)},
        {"attn_mask": torch.zeros(HEADS, TOKENS, TOKENS)},
        {"attn_mask": torch.zeros(1, 1, TOKENS, TOKENS)},
        {"key_padding_mask": torch.zeros(1, TOKENS, dtype=torch.bool)},
    ],
)
@pytest.mark.parametrize("batch_first", [True, False])
def test_it_refuses_masks_that_torchs_refuses(masks: Mapping[str, Tensor], batch_first: bool) -> None:
    x = noise(2, TOKENS, DIM) if batch_first else noise(TOKENS, 2, DIM)
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=batch_first).double()
    ours = copy.deepcopy(theirs)
    ours.__class__ = MultiheadAttention
    for attention in (theirs, ours):
        with pytest.raises((AssertionError, RuntimeError), match="mask"):
            attention(x, x, x, **masks)


def test_scores_that_fp16_holds_once_scaled_are_finite() -> None:
    theirs = nn.MultiheadAttention(64, 1, batch_first=True).half().eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([torch.eye(64)] * 3))
    ours = copy.deepcopy(theirs)
    ours.__class__ = MultiheadAttention
    x = torch.full((1, 2, 64), 40.0).half()  # products of 102,400
    with torch.no_grad():
        torch.testing.assert_close(ours(x, x, x)[1], theirs(x, x, x)[1])


def test_to_say_what_torchs_does_leaves_it_alone() -> None:
    """Neither its mode nor that of what it holds changes, and no hook of the user's runs."""
    made = nn.MultiheadAttention(DIM, HEADS)
    made.__class__ = MultiheadAttention
    made.train().register_forward_hook(lambda *args: pytest.fail("a hook ran"))
    assert [*widths_held(nn.Sequential(made))]
    assert all(module.training for module in made.modules())


def test_its_weights_are_drawn_anew_at_their_widths() -> None:
    model = randomise(Pooled(encoder=False).eval())
    small = fxprune.prune(
        model, 0.5, example_inputs=noise(2, TOKENS, 6).float(), form="module", ratios={"hidden": 0.25}
    )
    shape, before = small.pool.in_proj_weight.shape, small.pool.in_proj_weight.clone()
    small.pool._reset_parameters()
    assert small.pool.in_proj_weight.shape == shape
    assert not torch.equal(small.pool.in_proj_weight, before)
    assert not small.pool.in_proj_bias.any()
    said = str(fxprune.report(model, small, format="markdown"))
    assert "pool is a subclass of torch.nn's attention, for widths of 18 (stream)" in said
    assert "torch/nn/functional.py:" in said


class Pooled(nn.Module):
    """A stream that attention of torch.nn mixes, as a layer or inside torch's encoder, and that is pooled."""

    def __init__(self, *, encoder: bool, need_weights: bool = True, **options: Any) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.stem, self.head = nn.Linear(6, DIM), nn.Linear(DIM, 3)
        self.probe = nn.Parameter(torch.randn(1, 1, DIM))
        self.pool = nn.MultiheadAttention(DIM, HEADS, batch_first=True, **options)
        layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, batch_first=True, norm_first=False)
        self.mix = nn.TransformerEncoder(layer, 2) if encoder else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.stem(x))
        probe = self.probe.expand(x.shape[0], -1, -1)
        return self.head(self.pool(probe, x, x, need_weights=self.need_weights)[0][:, 0])


@pytest.mark.parametrize("way", [{"scope": "global"}, {"attention": "head_dim"}, {"attention": "heads"}])
@pytest.mark.parametrize("encoder", [True, False])
def test_the_users_code_is_whole_around_it(encoder: bool, way: Mapping[str, Any], tmp_path: Path) -> None:
    model = randomise(Pooled(encoder=encoder, need_weights=not encoder).eval())
    x, stream = noise(2, TOKENS, 6).float(), "embed" if encoder else "hidden"
    small = fxprune.prune(model, 0.5, example_inputs=x, form="module", ratios={stream: 0.25}, **way)
    assert type(small) is Pooled
    own = record_of(small).own
    assert own.is_whole and not own.spellings
    assert type(small.pool) is MultiheadAttention
    assert small.state_dict().keys() == model.state_dict().keys()
    assert fxprune.verify(model, small, example_inputs=noise(3, TOKENS, 6).float()) < 1e-8
    wanted = small(x)
    fxprune.save(small, tmp_path / "small", build="tests:Pooled")
    loaded = fxprune.load(tmp_path / "small", model=model)
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), loaded):
        torch.testing.assert_close(other(x), wanted)
        with torch.no_grad():  # torch's encoder has a path of its own then
            torch.testing.assert_close(other.eval()(x), wanted)
    small.train()(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    smaller = fxprune.prune(small.eval(), 0.3, example_inputs=x, form="module")
    assert fxprune.verify(small, smaller, example_inputs=x) < 1e-8


def test_the_encoders_padding_is_heard_without_nested_tensors() -> None:
    class Padded(Pooled):
        def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
            return self.head(self.mix(self.stem(x), src_key_padding_mask=padding)[:, 0])

    model = randomise(Padded(encoder=True).eval())
    x, padding = noise(2, TOKENS, 6).float(), CALLS["padding"]["key_padding_mask"]
    small = fxprune.prune(model, 0.5, example_inputs=x, form="module", ratios={"embed": 0.25})
    with torch.no_grad():
        got = small(x, padding)
        short = torch.cat([small(x[:1, :3]), small(x[1:])])  # of the second none is padding
    torch.testing.assert_close(got, short)
