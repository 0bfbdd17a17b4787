"""A plan that changes bases first: applied, certified, saved and loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.errors import PlanError
from fxprune.passes.rebasing.random import random_bases
from fxprune.result.plan import Plan


def model_of(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=3, num_classes=5
    )
    randomise(model, seed)
    return model.to(dtype).eval()


def plan_with_bases(model: nn.Module) -> Plan:
    plan = fxprune.plan_of(fxprune.prune(model, 0.5, attention="head_dim"))
    return replace(plan, bases=random_bases(fxprune.analyze(model), seed=3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_pruned_in_other_coordinates_is_certified(dtype: torch.dtype) -> None:
    model = model_of(dtype=dtype)
    plan = plan_with_bases(model)
    pruned = fxprune.apply(model, plan)
    certificate = fxprune.verify(model, pruned)
    assert certificate.exact and certificate < 1e-8
    plain = fxprune.apply(model, replace(plan, bases={}))
    assert not torch.equal(plain.head.weight, pruned.head.weight)
    assert plain.head.weight.shape == pruned.head.weight.shape
    assert set(fxprune.plan_of(pruned).bases) == set(plan.bases)


def test_a_weight_that_was_changed_shows() -> None:
    model = model_of()
    pruned = fxprune.apply(model, plan_with_bases(model))
    with torch.no_grad():
        pruned.blocks[0].mlp.fc1.weight[0, 0] += 1e-3
    certificate = fxprune.verify(model, pruned)
    assert set(certificate.changed) == {"blocks.0.mlp.fc1.weight"} and not certificate.exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_that_was_changed_by_a_twentieth_of_the_largest_shows(dtype: torch.dtype) -> None:
    model = model_of(dtype=dtype)
    pruned = fxprune.apply(model, plan_with_bases(model))
    weight = pruned.get_parameter("blocks.1.mlp.fc1.weight")
    with torch.no_grad():
        weight[3, 4] += weight.abs().max() / 20
    assert [*fxprune.verify(model, pruned).changed] == ["blocks.1.mlp.fc1.weight"]


def test_queries_on_which_nothing_depends_stay_finite() -> None:
    """Of an attention whose projection starts as zeros, as many recipes have it."""
    model, images = model_of(), torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.blocks[0].attn.proj.weight.zero_()
    options = {"data": [images], "attention": "head_dim", "importance_options": {"progress": False}}
    pruned = fxprune.prune(model, 0.25, **options)
    assert pruned(images).isfinite().all() and fxprune.verify(model, pruned).exact


def test_another_original_does_not_pass() -> None:
    pruned = fxprune.apply(model_of(), plan_with_bases(model_of()))
    assert not fxprune.verify(model_of(seed=1), pruned).exact


@pytest.mark.slow
def test_as_json_and_as_a_folder(tmp_path: Path) -> None:
    model = model_of()
    plan = plan_with_bases(model)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert {n: t.tolist() for n, t in again.bases.items()} == {n: t.tolist() for n, t in plan.bases.items()}
    pruned = fxprune.apply(model, again)
    assert fxprune.verify(model, pruned).exact
    fxprune.save(pruned, tmp_path / "saved")
    loaded = fxprune.load(tmp_path / "saved", model=model_of(seed=2))
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in pruned.state_dict().items())
    assert fxprune.verify(model, loaded).exact
    on_meta = fxprune.load(tmp_path / "saved", model=model_of().to("meta"))
    assert fxprune.verify(model, on_meta).exact


def test_as_an_instance_of_the_own_class() -> None:
    model = model_of()
    pruned = fxprune.apply(model, plan_with_bases(model), form="module")
    assert type(pruned) is type(model)
    assert fxprune.verify(model, pruned).exact


def test_bases_of_another_model_are_refused() -> None:
    plan = plan_with_bases(model_of())
    other = timm.models.VisionTransformer(img_size=32, embed_dim=24, depth=1, num_heads=3, num_classes=5)
    with pytest.raises(PlanError, match="another model"):
        fxprune.apply(other, plan)
    spoilt = replace(plan, bases={"embed": torch.eye(24) * 2})
    with pytest.raises(PlanError, match="rotations"):
        fxprune.apply(model_of(), spoilt)


def test_a_plan_makes_what_pruning_without_a_re_fit_makes() -> None:
    model, data = model_of(), [torch.randn(8, 3, 32, 32) for _ in range(2)]
    pruned = fxprune.prune(model, 0.5, data=data, refit=False, importance_options={"progress": False})
    again = fxprune.apply(model, fxprune.plan_of(pruned))
    assert fxprune.plan_of(pruned).bases and fxprune.verify(model, again).exact
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in pruned.state_dict().items())
    solved = fxprune.prune(model, 0.5, data=data, importance_options={"progress": False})
    applied = fxprune.plan_of(fxprune.apply(model, fxprune.plan_of(solved)))
    assert fxprune.plan_of(solved).samples == 16 and not applied.samples and not applied.divergence
