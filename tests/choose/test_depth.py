"""Depth: which additions are residual branches, which of them go, and what the result computes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from exactness import assert_runs, assert_slices, certificate
from helpers import (
    assert_same,
    by_capture,
    images,
    randomise,
    run,
    small_conv,
    small_hf_vit,
    small_swin,
    small_torchvision_vit,
    small_vit,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import Network, networks
from timm.models.convnext import ConvNeXt
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor, fx, nn

import fxprune
from fxprune.analysis.branches import find_branches, pairs
from fxprune.choose.depth import _least, without_branches
from fxprune.choose.importance.branches import branch_divergences
from fxprune.choose.merge_heads import mergeable, merged
from fxprune.compiler import prune_analyzed
from fxprune.errors import NothingPrunableError, OptionError, PlanError
from fxprune.passes.shrinking.remove_branches import remove_branches


def small_convnext() -> nn.Module:
    return randomise(
        ConvNeXt(num_classes=10, depths=(2, 1, 1, 1), dims=(8, 8, 12, 16), drop_path_rate=0.1).eval()
    )


def small_pvt() -> nn.Module:
    options = {"depths": (2, 1), "embed_dims": (16, 24), "num_heads": (1, 2), "sr_ratios": (2, 1)}
    return randomise(PyramidVisionTransformerV2(num_classes=10, mlp_ratios=(2, 2), **options).eval())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": small_vit,
    "layer scale": lambda: small_vit(init_values=0.1, drop_path_rate=0.2, drop_rate=0.1),
    "swin": small_swin,
    "convnext": small_convnext,
    "pvt": small_pvt,
    "torchvision": lambda: small_torchvision_vit(num_layers=2),
    "hf": small_hf_vit,
    "conv": small_conv,
}
BLOCKS = ((0, 0), (0, 1), (1, 0))
EXPECTED = {
    "vit": ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"],
    "layer scale": ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"],
    "swin": [f"layers.{i}.blocks.{j}.{kind}" for i, j in BLOCKS for kind in ("attn", "mlp")],
    "convnext": [f"stages.{i}.blocks.{j}" for i, j in (*BLOCKS, (2, 0), (3, 0))],
    "pvt": [f"stages.{i}.blocks.{j}.{kind}" for i, j in BLOCKS for kind in ("attn", "mlp")],
    "torchvision": [
        f"encoder.layers.encoder_layer_{i}.{kind}" for i in (0, 1) for kind in ("self_attention", "mlp")
    ],
    "hf": ["vit.layers.0.attention", "vit.layers.0.mlp"],
    "conv": ["widen"],
}


def example(name: str) -> Tensor:
    """Images in float64 of the size that the model takes."""
    return images(2, size=224 if name == "torchvision" else 32).double()


class Setting:
    """A small model in float64 with its analysis in one capture."""

    def __init__(self, name: str, capture: str) -> None:
        self.name, self.model = name, MODELS[name]().double()
        self.analysis = fxprune.analyze(self.model, example_inputs=example(name), capture=capture)
        self.branches = find_branches(self.analysis.module)


@pytest.fixture(scope="module", params=by_capture(MODELS, 3), ids="-".join)
def setting(request: pytest.FixtureRequest) -> Setting:
    name, capture = request.param
    return Setting(name, capture)


# ---------------------------------------------------------------- which additions


def test_every_residual_branch_is_found_and_named(setting: Setting) -> None:
    assert [b.name for b in setting.branches] == EXPECTED[setting.name]


def test_pairs_are_adjacent_and_stay_within_a_stage() -> None:
    module = fxprune.trace(small_swin(), images())
    assert [(a.name, b.name) for a, b in pairs(find_branches(module))] == [
        ("layers.0.blocks.0.attn", "layers.0.blocks.0.mlp"),
        ("layers.0.blocks.0.mlp", "layers.0.blocks.1.attn"),
        ("layers.0.blocks.1.attn", "layers.0.blocks.1.mlp"),
        ("layers.1.blocks.0.attn", "layers.1.blocks.0.mlp"),
    ]


class Additions(nn.Module):
    """One true branch among additions that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Linear(6, 8), nn.Linear(8, 8)
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.shared, self.true, self.row = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.where = nn.Parameter(torch.zeros(8))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        other = x.flip(1)
        x = self.stem(x)
        x = x + self.where  # a constant
        x = self.left(x) + self.right(x)  # neither is computed from the other
        x = x + self.wide(self.stem(other))  # from elsewhere
        x = x + self.left(x) * self.stem(other)  # in part
        x = x + self.row(x)  # stretches
        branch = self.shared(x)
        x = x + branch  # the branch is used again below
        x = x + self.true(x)
        x = x - self.true(x)  # no addition
        x = torch.add(x, self.wide(x), alpha=2)  # a scaled one
        return self.head(torch.cat((x, branch), -1))


def test_what_only_looks_like_a_branch_is_none(capture: str) -> None:
    module = fxprune.trace(randomise(Additions()), torch.randn(3, 6), capture=capture)
    (branch,) = find_branches(module)
    assert branch.weights == ()  # `true` serves twice: removing the branch leaves it in the model
    without = remove_branches(module, branches=[branch])
    assert {n for n, _ in without.named_parameters()} == {n for n, _ in module.named_parameters()}


class Nested(nn.Module):
    """x + outer(x), where outer holds `inner` additions of its own."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.inner = nn.ModuleList(nn.Linear(8, 8) for _ in range(inner))
        self.outer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = y = self.stem(x)
        for layer in self.inner:
            y = y.sin()
            y = y + layer(y)
        return self.head(x + self.outer(y))


@pytest.mark.parametrize(("inner", "names"), [(1, ["inner.0"]), (2, ["inner.0", "inner.1"])])
def test_of_nested_branches_a_chain_counts_one_by_one(inner: int, names: list[str]) -> None:
    module = fxprune.trace(randomise(Nested(inner)), torch.randn(3, 6))
    found = find_branches(module)
    assert [b.name for b in found] == names
    assert ("outer.weight" in found[0].weights) == (inner == 1)


# ---------------------------------------------------------------- what the result computes


@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize("every", [1, 2])
def test_removal_is_certified(setting: Setting, ratio: float, every: int) -> None:
    """Every branch, or every other one; alone, and with half of the channels."""
    model, branches = setting.model, setting.branches[::every]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    shallow = without_branches(setting.analysis, branches)
    pruned = prune_analyzed(model, shallow, ratio)
    assert certificate(model, pruned, shallow) < 1e-8
    assert_slices(model, pruned)
    gone = {name for branch in branches for name in branch.weights}
    assert gone.isdisjoint(pruned.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Zeroed(nn.Module):
    """Stands where a branch was."""

    def forward(self, x: Tensor, **_: object) -> Tensor:
        return torch.zeros_like(x)


def zeroed(model: nn.Module, *paths: str) -> nn.Module:
    for path in paths:
        model.set_submodule(path, Zeroed())
    return model


def test_the_result_is_the_model_with_the_branch_zeroed(capture: str) -> None:
    """By hand, on the model itself: the certificate is not asked."""
    removed = ("blocks.0.mlp", "blocks.1.attn")
    plan = fxprune.Plan({}, removed=removed)
    pruned = fxprune.apply(small_vit(), plan, example_inputs=images(), capture=capture)
    assert_same(run(pruned, images(5)), run(zeroed(small_vit(), *removed), images(5)), 1e-6)


def test_stochastic_depth_goes_with_its_branch_and_stays_with_the_others() -> None:
    model = small_vit(drop_path_rate=0.4).train()
    plan = fxprune.Plan({}, removed=("blocks.1.mlp",))
    pruned = fxprune.apply(model, plan, example_inputs=images())
    assert pruned.training
    drops = [n.target for n in pruned.graph.nodes if "drop_path" in str(n.target)]
    assert drops == ["blocks.1.drop_path1"]
    x = images(8)
    assert not torch.equal(pruned(x), pruned(x))
    pruned(x).sum().backward()
    assert pruned.blocks.get_submodule("1").attn.qkv.weight.grad is not None


class InPlace(nn.Module):
    """A sum that is written to in place, after a stream that is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(16, 4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.act(x + self.branch(x))
        return self.head(torch.cat((x, y), -1))


def test_what_writes_into_the_sum_does_not_write_into_the_stream() -> None:
    model = randomise(InPlace()).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    pruned = fxprune.apply(model, fxprune.Plan({}, removed=("branch",)), example_inputs=x)
    assert fxprune.verify(model, pruned) < 1e-8
    assert_same(run(pruned, x), run(zeroed(model, "branch"), x), 1e-12)
    traced = fxprune.trace(model, x)
    shorter = remove_branches(traced, branches=find_branches(traced))
    assert [n.name for n in shorter.graph.nodes if "val" not in n.meta] == []  # later steps need it


# ---------------------------------------------------------------- which branches go


def divergence(model: nn.Module, without: nn.Module, x: Tensor) -> float:
    p, q = (run(m, x).log_softmax(-1) for m in (model, without))
    return (p.exp() * (p - q)).sum(-1).mean().item()


def test_the_importance_of_a_branch_is_the_divergence_without_it() -> None:
    model, batches = small_vit().double(), [images(3).double(), images(2, seed=1).double()]
    analysis = fxprune.analyze(model, example_inputs=batches[0])
    branches = find_branches(analysis.module)
    units = [*((b,) for b in branches), *pairs(branches)]
    scores = branch_divergences(analysis, units, batches, progress=False)
    everything = torch.cat(batches)
    for unit, score in zip(units, scores, strict=True):
        without = zeroed(small_vit().double(), *(b.name for b in unit))
        assert score == pytest.approx(divergence(model, without, everything), rel=1e-9)


def hushed(*paths: str) -> nn.Module:
    """A ViT in which some branches hardly add anything."""
    model = small_vit()
    with torch.no_grad():
        for path in paths:
            last = list(model.get_submodule(path).parameters())[-2:]
            for p in last:
                p *= 0.01
    return model


@pytest.mark.parametrize("data", [None, images(4)])
def test_the_branches_that_do_least_go(data: Tensor | None) -> None:
    model = hushed("blocks.0.mlp", "blocks.1.attn")
    pruned = fxprune.prune(model, 0.0, depth=0.5, data=data, example_inputs=images())
    assert fxprune.plan_of(pruned).removed == ("blocks.0.mlp", "blocks.1.attn")


def test_a_block_may_be_an_ffn_and_the_next_attention() -> None:
    model = hushed("blocks.0.mlp", "blocks.1.attn")
    pruned = fxprune.prune(model, 0.0, depth=0.5, unit="block", data=images(4), example_inputs=images())
    assert fxprune.plan_of(pruned).removed == ("blocks.0.mlp", "blocks.1.attn")


def test_the_fraction_counts_units() -> None:
    model = small_vit(depth=4)
    removed = {
        (depth, unit): fxprune.plan_of(
            fxprune.prune(model, 0.0, depth=depth, unit=unit, example_inputs=images())
        ).removed
        for depth in (0.25, 0.5, 0.99)
        for unit in ("branch", "block")
    }
    assert [len(r) for r in removed.values()] == [2, 2, 4, 4, 7, 6]


def test_pairs_without_overlap_are_chosen_by_their_sum() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        scores = random.random(7).tolist()
        overlaps = [False, *(random.random(6) < 0.7)]
        for count in (1, 2, 3):
            chosen = _least(scores, overlaps, count)
            best = min(_feasible(overlaps, count), key=lambda c: sum(scores[i] for i in c))
            assert sum(scores[i] for i in chosen) == pytest.approx(sum(scores[i] for i in best))


def _feasible(overlaps: list[bool], count: int) -> list[tuple[int, ...]]:
    from itertools import combinations, pairwise

    every = combinations(range(len(overlaps)), count)
    return [c for c in every if not any(b == a + 1 and overlaps[b] for a, b in pairwise(c))]


def test_excluded_branches_stay() -> None:
    model = hushed("blocks.0.mlp", "blocks.1.mlp")
    pruned = fxprune.prune(model, 0.0, depth=0.25, exclude="blocks.*.mlp", example_inputs=images())
    assert fxprune.plan_of(pruned).removed[0].endswith("attn")


# ---------------------------------------------------------------- the plan


@pytest.fixture
def pruned() -> fx.GraphModule:
    return fxprune.prune(small_vit(), 0.5, depth=0.25, example_inputs=images())


def test_the_plan_keeps_what_was_removed(pruned: fx.GraphModule, tmp_path: Path) -> None:
    plan = fxprune.plan_of(pruned)
    assert len(plan.removed) == 1
    assert plan.removed[0] in str(plan)
    plan.save(tmp_path / "plan.json")
    loaded = fxprune.Plan.load(tmp_path / "plan.json")
    assert loaded.removed == plan.removed

    fresh = randomise(small_vit(), seed=5)
    applied = fxprune.apply(fresh, loaded, example_inputs=images(), capture="export")
    assert fxprune.plan_of(applied).removed == plan.removed
    assert fxprune.verify(fresh, applied) < 1e-8
    assert {k: v.shape for k, v in applied.state_dict().items()} == {
        k: v.shape for k, v in pruned.state_dict().items()
    }


def test_a_plan_of_before_depth_still_loads(pruned: fx.GraphModule, tmp_path: Path) -> None:
    import json

    path = tmp_path / "plan.json"
    fxprune.plan_of(pruned).save(path)
    record = json.loads(path.read_text())
    del record["removed"]
    path.write_text(json.dumps(record))
    assert fxprune.Plan.load(path).removed == ()
    path.write_text(json.dumps(record | {"removed": [3]}))
    with pytest.raises(PlanError, match="list of names"):
        fxprune.Plan.load(path)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"depth": 1.0}, OptionError, r"depth=1.0: .* in \[0, 1\)"),
        ({"depth": True}, OptionError, "depth=True"),
        ({"depth": 0.5, "unit": "layer"}, OptionError, "unit='layer': one of 'branch', 'block'"),
        ({"depth": 0.5, "exclude": "blocks*"}, NothingPrunableError, "no residual branch can be removed"),
    ],
)
def test_bad_options_are_named(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fxprune.prune(small_vit(), 0.0, example_inputs=images(), **options)


def test_a_plan_for_other_branches_is_refused() -> None:
    with pytest.raises(PlanError, match=r"no residual branch 'blocks\.7\.mlp'"):
        fxprune.apply(small_vit(), fxprune.Plan({}, removed=("blocks.7.mlp",)), example_inputs=images())


# ---------------------------------------------------------------- random networks


@pytest.mark.slow
@settings(
    max_examples=int(os.environ.get("FXPRUNE_NETWORKS", "100")) // 6,
    deadline=None,
    derandomize="FXPRUNE_NETWORKS" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    network=networks(), every=st.sampled_from([1, 2]), ratio=st.sampled_from([0.0, 0.5]), merge=st.booleans()
)
def test_a_random_network_loses_branches_and_heads(
    network: Network, every: int, ratio: float, merge: bool
) -> None:
    model, x = network.build().eval(), network.images()
    analysis = fxprune.analyze(model, example_inputs=x, capture="symbolic")
    if merge:
        analysis = merged(analysis, dict.fromkeys(mergeable(analysis), 1))
    branches = find_branches(analysis.module)[::every]
    shallow = without_branches(analysis, branches)
    if ratio and not shallow.prunable:
        return
    pruned = prune_analyzed(model, shallow, ratio)
    assert certificate(model, pruned, shallow) < 1e-8
    assert_slices(model, pruned)
    assert_runs(pruned, 5)
    assert {name for branch in branches for name in branch.weights}.isdisjoint(pruned.state_dict())
