"""`attention="merge"`: what merged heads compute, which channels go, and the paper's published choice."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exactness import assert_slices
from helpers import (
    assert_same,
    images,
    parameter_count,
    randomise,
    run,
    small_swin,
    small_torchvision_vit,
    small_vit,
    widths,
)
from torch import Tensor, nn

import fxprune
from fxprune.certify.randomise import uninitialised
from fxprune.errors import OptionError, PlanError
from fxprune.passes.shrinking.regroup_heads import regroup_heads

SCORES = os.environ.get("FXPRUNE_UP_DEIT_SCORES", "")

HEADS = {"blocks.0.attn.heads": 2, "blocks.1.attn.heads": 2}


def told_of_fewer_heads(heads: int) -> nn.Module:
    """The model's own code on the same weights with fewer heads, and the scale that it had."""
    model = small_vit().double()
    for block in model.blocks:
        block.attn.num_heads, block.attn.head_dim = heads, 48 // heads
        block.attn.fused_attn = False  # else the scale would be that of the new head dim
    return model


@pytest.mark.parametrize("heads", [1, 2])
def test_merging_is_telling_the_model_of_fewer_heads(heads: int, capture: str) -> None:
    model, x = small_vit().double(), images(3).double()
    plan = fxprune.Plan({}, regrouped=dict.fromkeys(HEADS, heads))
    merged = fxprune.apply(model, plan, example_inputs=x, capture=capture)
    assert_same(run(merged, x), run(told_of_fewer_heads(heads), x), 1e-12)
    assert (run(merged, x) - run(model, x)).abs().max() > 1e-3
    assert widths(merged) == widths(model)
    assert fxprune.verify(model, merged) < 1e-8


@pytest.mark.parametrize("between", [None, lambda model, step: None])
def test_heads_merge_in_the_first_of_several_steps(between: Any) -> None:
    model, x = small_vit(), images(3)
    at_once = fxprune.prune(model, 0.5, attention="merge", example_inputs=x)
    pruned = fxprune.prune(model, 0.5, attention="merge", steps=3, between=between, example_inputs=x)
    assert widths(pruned) == widths(at_once)
    assert fxprune.plan_of(pruned).regrouped == HEADS
    assert fxprune.verify(model, pruned) < 1e-8


def test_the_pass_leaves_a_module_that_runs() -> None:
    model, x = small_vit().double(), images(3).double()
    analysis = fxprune.analyze(model, example_inputs=x)
    merged = regroup_heads(analysis, counts={group: 2 for group in analysis.groups if group.name in HEADS})
    assert_same(run(merged, x), run(told_of_fewer_heads(2), x), 1e-12)


class ReadsSizes(nn.Module):
    """An attention that computes its head dim from the width that it meets."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(6, 16), nn.Linear(16, 48)
        self.proj, self.head = nn.Linear(16, 16), nn.Linear(16, 5)
        self.heads, self.scale = 4, None

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        out = (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v
        return self.head(x + self.proj(out.transpose(1, 2).reshape(b, n, c)))


def test_merging_a_model_that_reads_its_sizes(capture: str) -> None:
    model, x = randomise(ReadsSizes().eval()), torch.randn(2, 3, 6)
    merged = fxprune.apply(model, fxprune.Plan({}, regrouped={"heads": 2}), example_inputs=x, capture=capture)
    assert widths(merged) == widths(model)
    assert fxprune.verify(model, merged) < 1e-8
    told = copy.deepcopy(model)
    told.heads, told.scale = 2, 4**-0.5
    assert_same(run(merged, x), run(told, x), 1e-5)
    pruned = fxprune.prune(model, 0.5, attention="merge", example_inputs=x, capture=capture)
    assert fxprune.verify(model, pruned) < 1e-8


@pytest.mark.parametrize("depth", [0.0, 0.5])
def test_the_channels_of_each_merged_head_are_pruned_back(capture: str, depth: float) -> None:
    model, x = small_vit().double(), images(2).double()
    pruned = fxprune.prune(model, 0.5, attention="merge", depth=depth, example_inputs=x, capture=capture)
    plan = fxprune.plan_of(pruned)
    assert plan.regrouped == HEADS
    for name, group in plan.groups.items():
        if name.endswith("attn.head_dim"):
            assert group.indices.shape == (2, 12)  # each of 2 heads chooses 12 of 24
            assert group.size == 24
    assert fxprune.verify(model, pruned) < 1e-8
    assert_slices(model, pruned)


def test_the_best_of_each_merged_head_stay() -> None:
    rising = np.arange(48.0).reshape(2, 24)

    def importance(analysis: Any, groups: Any) -> Any:
        return {g: rising if g.inside else np.arange(g.size) for g in groups}

    pruned = fxprune.prune(
        small_vit(), 0.5, attention="merge", importance=importance, example_inputs=images()
    )
    rows = fxprune.plan_of(pruned).kept["blocks.0.attn.qkv.weight"][0]
    assert rows[:24].tolist() == [*range(12, 24), *range(36, 48)]


def test_attention_in_another_library() -> None:
    model = small_torchvision_vit()
    pruned = fxprune.prune(model, 0.75, attention="merge")
    assert list(fxprune.plan_of(pruned).regrouped.values()) == [1]
    assert fxprune.verify(model, pruned) < 1e-8


@pytest.mark.parametrize("make", [small_swin, lambda: small_vit(qk_norm=True)])
def test_heads_with_weights_of_their_own_are_not_merged(make: Any) -> None:
    """A position bias per head, a norm over each head's channels: head dims go instead."""
    model = make()
    pruned = fxprune.prune(model, 0.5, attention="merge", example_inputs=images())
    assert fxprune.plan_of(pruned).regrouped == {}
    assert any("head_dim" in name for name in fxprune.plan_of(pruned).groups)
    assert fxprune.verify(model, pruned, example_inputs=images()) < 1e-6


def test_a_smaller_sibling_by_merging() -> None:
    model, small = small_vit(depth=3), randomise(small_vit(depth=2, embed_dim=24, num_heads=2), seed=3)
    pruned = fxprune.prune(model, like=small, attention="merge", example_inputs=images())
    assert set(fxprune.plan_of(pruned).regrouped.values()) == {2}
    small.load_state_dict(pruned.state_dict(), strict=True)
    assert_same(run(pruned, images(3)), run(small, images(3)), 1e-5)
    assert fxprune.verify(model, pruned) < 1e-8


def test_the_plan_remembers_what_was_merged(tmp_path: Path) -> None:
    pruned = fxprune.prune(small_vit(), 0.5, attention="merge", example_inputs=images())
    plan = fxprune.plan_of(pruned)
    assert "merged" in str(plan)
    plan.save(tmp_path / "plan.json")
    loaded = fxprune.Plan.load(tmp_path / "plan.json")
    assert loaded.regrouped == plan.regrouped == HEADS
    fresh = randomise(small_vit(), seed=5)
    applied = fxprune.apply(fresh, loaded, example_inputs=images(), capture="export")
    assert fxprune.verify(fresh, applied) < 1e-8
    for wrong in ({"blocks.7.attn.heads": 2}, {"blocks.0.attn.heads": 3}):
        with pytest.raises(PlanError, match="can't be merged"):
            fxprune.apply(fresh, fxprune.Plan({}, regrouped=wrong), example_inputs=images())


@pytest.mark.parametrize("ratio", [0.3, 0.25])
def test_heads_that_do_not_merge_evenly_are_named(ratio: float) -> None:
    with pytest.raises(OptionError, match=r"of the 4 heads of blocks\.0\.attn\.heads.*0\.75, 0\.5"):
        fxprune.prune(small_vit(), ratio, attention="merge", example_inputs=images())


# ---------------------------------------------------------------- the published choice


@pytest.mark.slow
@pytest.mark.skipif(not SCORES, reason="FXPRUNE_UP_DEIT_SCORES names no file of published scores")
def test_the_published_scores_give_the_published_choice() -> None:
    """UP-DeiT-T from DeiT-B: attention in thirds of 256 channels, and a model that DeiT-T loads."""
    import timm

    published = np.load(SCORES)
    with uninitialised():
        large, small = (timm.create_model(f"deit_{size}_patch16_224") for size in ("base", "tiny"))
    randomise(large)

    def importance(analysis: Any, groups: Any) -> Any:
        return {group: _published(group, published) for group in groups}

    pruned = fxprune.prune(large.eval(), like=small, attention="merge", importance=importance)
    kept = fxprune.plan_of(pruned).kept
    assert _removed(kept["cls_token"][2], 768) == sorted(published["neck_removed"])
    for i in range(12):
        attention = _removed(kept[f"blocks.{i}.attn.proj.weight"][1], 768)
        if -1 not in published["attn_removed"][i]:
            assert attention == sorted(published["attn_removed"][i])
        thirds = np.argsort(published["attn"][i].reshape(3, 256), axis=1)[:, :192]
        assert attention == sorted((thirds + 256 * np.arange(3)[:, None]).ravel())
        ffn = _removed(kept[f"blocks.{i}.mlp.fc1.weight"][0], 3072)
        assert ffn == sorted(np.argsort(published["ffn"][i])[:2304])
    assert parameter_count(pruned) == 5_717_416
    small.load_state_dict(pruned.state_dict(), strict=True)
    x = images(1, 224)
    assert_same(run(pruned, x), run(small.eval(), x), 1e-4)
    assert fxprune.verify(large, pruned, batch=1) < 1e-8


def _published(group: fxprune.Group, published: Any) -> np.ndarray:
    if group.size == 768:
        return published["neck"]
    block = int(group.name.split(".")[1])
    return published["ffn"][block] if group.inside is None else published["attn"][block].reshape(3, 256)


def _removed(kept: torch.Tensor, size: int) -> list[int]:
    return sorted({*range(size)} - {*kept.tolist()})
