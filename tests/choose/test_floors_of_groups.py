"""The default floor: whatever the ratio and the ranking, what is left is a network."""

from __future__ import annotations

import pytest
import torch
from helpers import images, mlp, small_conv, small_swin, small_vit, widths

import fxprune

MODELS = {"vit": small_vit, "swin": small_swin, "conv": small_conv}


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("model", MODELS)
def test_after_a_global_ranking_the_output_depends_on_the_input(model: str, ratio: float) -> None:
    pruned = fxprune.prune(MODELS[model](), ratio, scope="global", example_inputs=images())
    with torch.no_grad():
        out = pruned.eval()(images(4, seed=3))
    assert (out - out[:1]).abs().max() > 1e-6 * out.abs().max()
    for name, kept in fxprune.plan_of(pruned).groups.items():
        few = 1 if "heads" in name else 4
        assert kept.count >= min(few, kept.size // 2), name


@pytest.mark.parametrize("scope", ["uniform", "global", "isomorphic"])
def test_a_norm_keeps_channels_to_run_over_and_the_report_names_the_group(scope: str) -> None:
    dense = small_vit()
    pruned = fxprune.prune(dense, 0.9, scope=scope, example_inputs=images())
    assert widths(pruned)["norm.weight"] == (8,)
    assert "embed" in fxprune.plan_of(pruned).floored
    found = fxprune.report(dense, pruned)
    assert "embed" in found.floored and "at their floor" in found.to_markdown()
    assert fxprune.verify(dense, pruned) < 1e-8


def test_a_half_everywhere_meets_no_floor() -> None:
    for make in MODELS.values():
        assert fxprune.plan_of(fxprune.prune(make(), 0.5, example_inputs=images())).floored == ()


def test_floor_1_means_1() -> None:
    pruned = fxprune.prune(small_vit(), 0.99, floor=1, example_inputs=images())
    assert widths(pruned)["norm.weight"] == (1,)


def test_a_floor_holds_for_ratios_of_their_own() -> None:
    pruned = fxprune.prune(small_vit(), 0.5, ratios={"embed": 0.9}, floor=20, example_inputs=images())
    assert widths(pruned)["norm.weight"] == (24,) or widths(pruned)["norm.weight"] == (20,)
    assert "embed" in fxprune.plan_of(pruned).floored


def test_a_target_that_floors_forbid_says_so() -> None:
    with pytest.raises(fxprune.FxpruneError, match="the default floor is the limit"):
        fxprune.prune(small_vit(), 0.99, target="params", example_inputs=images())
    with pytest.raises(fxprune.FxpruneError, match=r"floor=0\.8 is the limit"):
        fxprune.prune(small_vit(), 0.9, target="params", floor=0.8, example_inputs=images())


def test_the_plan_keeps_it_in_a_file(tmp_path) -> None:
    plan = fxprune.plan_of(fxprune.prune(small_vit(), 0.9, example_inputs=images()))
    plan.save(tmp_path / "plan.json")
    assert fxprune.Plan.load(tmp_path / "plan.json").floored == plan.floored != ()


def test_hidden_channels_of_a_plain_ratio_have_no_floor() -> None:
    pruned = fxprune.prune(mlp(), 0.9, example_inputs=torch.randn(2, 6))
    assert widths(pruned)["0.weight"][0] == 2


def test_a_signal_that_fades_under_old_statistics_is_said_and_comes_back() -> None:
    layers = [layer for _ in range(12) for layer in (torch.nn.Conv2d(64, 64, 1), torch.nn.BatchNorm2d(64))]
    dense = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 1), *layers, torch.nn.Conv2d(64, 2, 1))
    x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    for _ in range(40):
        dense.train()(x)
    pruned = fxprune.prune(dense.eval(), 0.9, scope="global", example_inputs=x)
    found = fxprune.report(dense, pruned)
    assert found.norms_as_before == 12 and "batch norms" in found.to_markdown()
    faded = pruned(x).std(0).mean()
    for _ in range(40):
        pruned.train()(x)
    assert pruned.eval()(x).std(0).mean() > 20 * faded
    assert fxprune.report(dense, pruned).norms_as_before == 0
