"""`like=`: the stock small model loads what the large one was pruned to, and computes the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    CAPTURES,
    assert_same,
    images,
    randomise,
    run,
    small_hf_vit,
    small_swin,
    small_torchvision_vit,
    small_vit,
    widths,
)
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import SiblingError

Make = Callable[..., nn.Module]


def stock(make: Make, seed: int = 0, **options: Any) -> nn.Module:
    """A model in float64 with other weights; what no state_dict holds stays as the library made it."""
    model = make(**options)
    fresh = type(model)(**_options(make, options)) if make is small_swin else model
    masks = {n: b.clone() for n, b in fresh.named_buffers()}
    randomise(model, seed=seed)
    saved = model.state_dict()
    for name, buffer in model.named_buffers():
        if name not in saved:
            buffer.copy_(masks[name])
    return model.double().eval()


def _options(make: Make, options: dict[str, Any]) -> dict[str, Any]:
    usual = {"img_size": 32, "patch_size": 4, "num_classes": 10, "window_size": 4}
    return usual | {"embed_dim": 24, "depths": (2, 1), "num_heads": (2, 4)} | options


def small_pvt(**options: Any) -> nn.Module:
    usual = {"depths": (2, 1), "embed_dims": (16, 24), "num_heads": (1, 2), "sr_ratios": (2, 1)}
    return PyramidVisionTransformerV2(num_classes=10, mlp_ratios=(2, 2), **usual | options).eval()


def necked(width: int = 24, neck: int = 16) -> nn.Module:
    """A body of some width under a neck of another, with groups that no value shows alone."""
    body = (nn.Conv2d(3, width, 4, stride=4), nn.GELU(), nn.Conv2d(width, neck, 3, padding=1))
    return nn.Sequential(*body, nn.GroupNorm(4, neck), nn.GELU(), nn.Conv2d(neck, 10, 1)).eval()


PAIRS: dict[str, tuple[Make, dict[str, Any], dict[str, Any]]] = {
    "width and heads": (small_vit, {}, {"embed_dim": 24, "num_heads": 2}),
    "head dims": (small_vit, {}, {"embed_dim": 24, "num_heads": 4}),
    "heads and head dims": (small_vit, {}, {"embed_dim": 16, "num_heads": 2}),
    "one head": (small_vit, {}, {"embed_dim": 12, "num_heads": 1}),
    "query norms": (small_vit, {"qk_norm": True}, {"qk_norm": True, "embed_dim": 24}),
    "depth": (small_vit, {"depth": 4}, {"depth": 2}),
    "all": (small_vit, {"depth": 2}, {"depth": 1, "embed_dim": 24, "num_heads": 3, "mlp_ratio": 2.0}),
    "stochastic depth": (small_vit, {"depth": 3, "drop_path_rate": 0.1}, {"depth": 2, "drop_rate": 0.1}),
    "pvt": (small_pvt, {}, {"depths": (1, 1), "embed_dims": (8, 12)}),
    "one neck": (necked, {}, {"width": 12}),
    "swin": (small_swin, {"depths": (4, 3)}, {"depths": (2, 2)}),
    "swin widths": (small_swin, {}, {"embed_dim": 16, "depths": (2, 1)}),
    "torchvision": (
        small_torchvision_vit,
        {"num_layers": 3},
        {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24},
    ),
    "hf": (
        small_hf_vit,
        {"num_hidden_layers": 2},
        {"num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 40},
    ),
}


def inputs(make: Make, batch: int = 2) -> Tensor:
    return images(batch, 224 if make is small_torchvision_vit else 32).double()


BOTH = {"heads and head dims", "all"}


@pytest.mark.parametrize(
    ("name", "capture"), [(n, c) for n in PAIRS for c in ("auto", *CAPTURES) if (c == "auto") != (n in BOTH)]
)
def test_the_stock_model_loads_the_result_and_computes_the_same(name: str, capture: str) -> None:
    make, large_options, small_options = PAIRS[name]
    large, small = stock(make, **large_options), stock(make, seed=3, **small_options)
    before = {k: v.clone() for k, v in (*large.state_dict().items(), *small.state_dict().items())}
    pruned = fxprune.prune(large, like=small, example_inputs=inputs(make), capture=capture)
    after = dict((*large.state_dict().items(), *small.state_dict().items()))
    assert all(torch.equal(before[k], after[k]) for k in before)

    small.load_state_dict(pruned.state_dict(), strict=True)
    x = inputs(make, 3)
    assert_same(run(pruned, x), run(small, x), 1e-8)
    assert fxprune.verify(large, pruned) < 1e-8
    assert_slices_but_for_scales(large, pruned)


def assert_slices_but_for_scales(large: nn.Module, pruned: fx.GraphModule) -> None:
    """Every weight is the index-select that the plan says, under its new name; but for folded scales."""
    plan, state = fxprune.plan_of(pruned), large.state_dict()
    old_of = {new: old for old, new in plan.renamed.items()}
    scaled = set()
    for new, tensor in pruned.state_dict().items():
        old = old_of.get(new, new)
        expected = state[old]
        for dim, indices in enumerate(plan.kept.get(old, ())):
            expected = expected if indices is None else expected.index_select(dim, indices)
        if not torch.equal(tensor, expected):
            scaled.add(new)
            ratios = tensor / expected
            other = ratios[ratios != 1][0]
            assert torch.minimum((ratios - 1).abs(), (ratios - other).abs()).max() < 1e-12
    assert bool(scaled) == bool(plan.scales)


# ---------------------------------------------------------------- what is chosen


def test_the_branches_that_matter_most_stay_and_take_the_places_in_order() -> None:
    """Not the first blocks, and not whole ones: an FFN may follow an attention of another block."""
    large = stock(small_vit, depth=4)
    with torch.no_grad():
        for path in ("blocks.0.mlp.fc2", "blocks.1.attn.proj", "blocks.1.mlp.fc2", "blocks.2.attn.proj"):
            for p in large.get_submodule(path).parameters():
                p *= 1e-3
    small = stock(small_vit, seed=3, depth=2)
    pruned = fxprune.prune(large, like=small, data=images(4).double(), example_inputs=inputs(small_vit))
    plan = fxprune.plan_of(pruned)
    assert plan.removed == ("blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp", "blocks.2.attn")
    assert plan.renamed["blocks.2.mlp.fc1.weight"] == "blocks.0.mlp.fc1.weight"
    assert plan.renamed["blocks.3.attn.qkv.weight"] == "blocks.1.attn.qkv.weight"
    assert torch.equal(pruned.state_dict()["blocks.0.attn.qkv.bias"], large.blocks[0].attn.qkv.bias)
    small.load_state_dict(pruned.state_dict())
    assert_same(run(pruned, inputs(small_vit)), run(small, inputs(small_vit)), 1e-8)


def test_windows_keep_their_order() -> None:
    """A shifted window can't take the place of one that is not, however little it matters."""
    large = stock(small_swin, depths=(4, 1))
    with torch.no_grad():
        for path in ("layers.0.blocks.0", "layers.0.blocks.2"):
            for p in large.get_submodule(f"{path}.attn.proj").parameters():
                p *= 1e-3
    small = stock(small_swin, seed=3, depths=(2, 1))
    pruned = fxprune.prune(large, like=small, data=images(4).double(), example_inputs=inputs(small_swin))
    shifted = [b for b in fxprune.plan_of(pruned).removed if b in _attentions(1, 3)]
    plain = [b for b in fxprune.plan_of(pruned).removed if b in _attentions(0, 2)]
    assert (len(shifted), len(plain)) == (1, 1)


def _attentions(*blocks: int) -> list[str]:
    return [f"layers.0.blocks.{i}.attn" for i in blocks]


def test_importance_decides_which_elements_stay() -> None:
    large, small = stock(small_vit), stock(small_vit, seed=3, embed_dim=24, num_heads=2)

    def last_first(analysis: Any, groups: Any) -> Any:
        return {g: torch.arange(g.size).numpy() for g in groups}

    pruned = fxprune.prune(large, like=small, importance=last_first, example_inputs=inputs(small_vit))
    plan = fxprune.plan_of(pruned)
    assert plan.groups["embed"].indices.tolist() == list(range(24, 48))
    assert plan.groups["blocks.0.attn.heads"].indices.tolist() == [2, 3]


def test_a_smaller_model_of_lower_precision_says_the_same() -> None:
    large, small = stock(small_vit, depth=1).float(), stock(small_vit, seed=3, embed_dim=24, depth=1)
    pruned = fxprune.prune(large, like=small.half(), example_inputs=inputs(small_vit).float())
    assert next(pruned.parameters()).dtype is torch.float32


def test_the_scale_is_folded_into_the_query_alone() -> None:
    large, small = stock(small_vit), stock(small_vit, seed=3, embed_dim=24, num_heads=4)
    pruned = fxprune.prune(large, like=small, example_inputs=inputs(small_vit))
    kept = fxprune.plan_of(pruned).kept["blocks.1.attn.qkv.bias"][0]
    ratio = pruned.state_dict()["blocks.1.attn.qkv.bias"] / large.blocks[1].attn.qkv.bias[kept]
    torch.testing.assert_close(ratio[:24], torch.full((24,), (6 / 12) ** 0.5).double())
    assert torch.equal(ratio[24:], torch.ones(48).double())


def test_rounding_a_folded_scale_is_no_error_but_a_wrong_one_is() -> None:
    """float32 weights hold the folded products to seven digits: the certificate sees past that."""
    large, small = stock(small_vit).float(), stock(small_vit, seed=3, embed_dim=24, num_heads=4).float()
    with torch.no_grad():
        for block in large.blocks:
            block.attn.qkv.weight *= 8
    pruned = fxprune.prune(large, like=small, example_inputs=images())
    assert fxprune.verify(large, pruned) < 1e-8
    with torch.no_grad():
        pruned.state_dict()["blocks.1.attn.qkv.weight"][:24] *= 1 + 1e-4
    assert fxprune.verify(large, pruned) > 1e-8


# ---------------------------------------------------------------- the result is a model as any other


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module, fx.GraphModule]:
    options = {"drop_path_rate": 0.3, "drop_rate": 0.1}
    large, small = stock(small_vit, depth=4, **options), stock(small_vit, seed=3, embed_dim=24, depth=2)
    return large, small, fxprune.prune(large.train(), like=small, example_inputs=inputs(small_vit))


def test_the_result_trains_copies_and_pickles(pair: tuple[nn.Module, nn.Module, fx.GraphModule]) -> None:
    import pickle

    _, small, pruned = pair
    assert pruned.training
    assert all(m.training for m in pruned.modules())
    x = inputs(small_vit)
    assert not torch.equal(pruned(x), pruned(x))
    pruned(x).sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())
    for clone in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert widths(clone) == widths(small)
        assert_same(run(clone.eval(), x), run(copy.deepcopy(pruned).eval(), x), 0)


def test_the_plan_is_data(pair: tuple[nn.Module, nn.Module, fx.GraphModule], tmp_path: Path) -> None:
    large, _, pruned = pair
    fxprune.plan_of(pruned).save(tmp_path / "plan.json")
    plan = fxprune.Plan.load(tmp_path / "plan.json")
    assert (plan.renamed, plan.scales) == (fxprune.plan_of(pruned).renamed, fxprune.plan_of(pruned).scales)
    again = fxprune.apply(large, plan, example_inputs=inputs(small_vit))
    for (a, x), (b, y) in zip(again.state_dict().items(), pruned.state_dict().items(), strict=True):
        assert a == b
        assert torch.equal(x, y)
    assert fxprune.verify(large, again) < 1e-8


# ---------------------------------------------------------------- impossible targets


@pytest.mark.parametrize(
    ("large", "small", "message"),
    [
        ({}, {"embed_dim": 64}, r"embed \(cls_token\[2\]\) has 48 elements here and 64 .* nothing grows"),
        ({}, {"mlp_ratio": 5.0}, r"blocks\.0\.mlp\.hidden .* 192 elements here and 240"),
        ({}, {"num_classes": 7}, r"head\.\w+ \(head\.weight\[0\]\) has 10 .* and 7 .* reaches the output"),
        ({}, {"depth": 3}, "the model has 4 removable branches, the smaller one 6"),
        ({}, {"init_values": 0.1}, r"where the model has .* the smaller one has"),
        ({}, {"qkv_bias": False}, "linear weight bias.* the smaller one has .*linear weight,"),
        ({}, {"patch_size": 16}, r"conv2d weight bias \(8, 8\).*conv2d weight bias \(16, 16\)"),
        ({}, {"img_size": 64}, "like= must take what the model takes"),
        ({}, {"act_layer": nn.ReLU}, "where the model has .* the smaller one has"),
        ({}, {"norm_layer": partial(nn.LayerNorm, eps=1e-3)}, "constants .* no pruning changes them"),
    ],
)
def test_an_impossible_target_says_why(large: dict, small: dict, message: str) -> None:
    with pytest.raises(SiblingError, match=message):
        fxprune.prune(small_vit(**large), like=small_vit(**small), example_inputs=images())


def test_groups_that_might_shrink_either_way_are_no_guess() -> None:
    """A neck of half the width may have half the groups, or groups half as large."""
    with pytest.raises(SiblingError, match=r"elements of heads to keep .* they show it only together"):
        fxprune.prune(necked(), like=necked(neck=8), example_inputs=images())


def test_what_is_excluded_can_not_shrink() -> None:
    with pytest.raises(SiblingError, match=r"blocks\.0\.mlp\.hidden must shrink to 96.*exclude="):
        fxprune.prune(
            small_vit(), like=small_vit(mlp_ratio=2.0), exclude="blocks.0.mlp", example_inputs=images()
        )


# ---------------------------------------------------------------- the real pairs


REAL = [
    ("timm", "deit_base_patch16_224", "deit_small_patch16_224"),
    ("timm", "deit_base_patch16_224", "deit_tiny_patch16_224"),
    ("timm", "pvt_v2_b2", "pvt_v2_b1"),
    ("timm", "pvt_v2_b2", "pvt_v2_b0"),
    ("timm", "swin_small_patch4_window7_224", "swin_tiny_patch4_window7_224"),
    ("timm", "vit_large_patch16_224", "vit_base_patch16_224"),
    ("torchvision", "vit_l_16", "vit_b_16"),
]


def real(library: str, name: str) -> nn.Module:
    import timm
    import torchvision

    return timm.create_model(name) if library == "timm" else torchvision.models.get_model(name)


@pytest.mark.slow
@pytest.mark.parametrize(("library", "large_name", "small_name"), REAL, ids=lambda v: v)
def test_real_pairs(library: str, large_name: str, small_name: str) -> None:
    large, small = real(library, large_name), real(library, small_name).eval()
    for p in (p for p in large.parameters() if p.ndim == 1):  # no bias is left zero, no scale one
        nn.init.normal_(p, 1.0 if p.mean() > 0.5 else 0.0, 0.1)
    pruned = fxprune.prune(large.eval(), like=small)
    small.load_state_dict(pruned.state_dict(), strict=True)
    assert sum(p.numel() for p in pruned.parameters()) == sum(p.numel() for p in small.parameters())
    x = images(2, 224)
    assert_same(run(pruned, x), run(small, x), 1e-4)
    assert fxprune.verify(large, pruned, batch=1) < 1e-8
