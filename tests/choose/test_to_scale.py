"""Scores of every kind are brought to one scale by what their removal is measured to cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.analysis.analysis import Group
from fxprune.choose import decide as decisions
from fxprune.choose.importance.compensated import compensated
from fxprune.choose.importance.gathered import gathered
from fxprune.choose.importance.kl import kl
from fxprune.choose.importance.layers import layers_by_group
from fxprune.choose.importance.scores import Scores
from fxprune.choose.to_scale import SAMPLES, masked_scale, measured_scale, some_of
from fxprune.zoo import randomise

QUIET = {"progress": False}


class Wide(nn.Module):
    """A residual stream and a hidden layer: two kinds that compete for a budget."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.up, self.down, self.head = nn.Linear(16, 40), nn.Linear(40, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.down(nn.functional.gelu(self.up(self.norm(x))))).mean(1))


def made() -> nn.Module:
    model = Wide()
    randomise(model, 0)
    return model.eval()


def batches(count: int, size: int = 16) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(size, 7, 6) for _ in range(count)]


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_scores_add_up_to_what_was_measured(power: float) -> None:
    """Two kinds whose losses grow by some power of what their scores say."""
    analysis = fxprune.analyze(made(), example_inputs=batches(1)[0][:2])
    groups = analysis.prunable
    generator = np.random.default_rng(0)
    scores = {g: generator.permutation(np.arange(1.0, g.size + 1)) for g in groups}
    scale = {"embed": 10.0, "hidden": 0.1}

    def divergence(counts: dict[Group, int]) -> float:
        (item,) = counts.items()
        return scale[item[0].role] * float(np.arange(1.0, item[0].size - item[1] + 1).sum()) ** power

    found = measured_scale(groups, scores, divergence)
    assert {g.role for g in groups} == {"embed", "hidden"}
    for group in groups:
        assert np.array_equal(np.argsort(found[group]), np.argsort(scores[group]))
        for gone in (1, 5, group.size // 2):
            lowest = np.sort(found[group])[:gone].sum()
            assert np.isclose(lowest, divergence({group: group.size - gone}))


def test_one_kind_is_not_measured() -> None:
    analysis = fxprune.analyze(made(), example_inputs=batches(1)[0][:2])
    groups = [g for g in analysis.prunable if g.role == "hidden"]
    scores = {g: np.ones(g.size) for g in groups}

    def never(counts: dict[Group, int]) -> float:
        raise AssertionError(counts)

    assert measured_scale(groups, scores, never) is scores


def test_some_of_the_data_is_enough() -> None:
    analysis = fxprune.analyze(made(), example_inputs=batches(1)[0][:2])
    data = batches(20)
    assert len(some_of(data, analysis)) == -(-SAMPLES // 16)
    assert len(some_of(data[:2], analysis)) == 2
    assert len(some_of(data[0], analysis)) == 1  # a tensor is one batch


def test_one_tensor_is_data_for_every_step() -> None:
    model, data = made(), torch.cat(batches(3))
    options = {"example_inputs": data[:2], "importance_options": QUIET}
    for scope in ("uniform", "global"):
        pruned, listed = (fxprune.prune(model, 0.5, data=d, scope=scope, **options) for d in (data, [data]))
        assert torch.equal(pruned(data[:4]), listed(data[:4]))


@pytest.mark.parametrize(
    "options", [{"target": "macs"}, {"target": "channels"}, {"target": "params", "refit": False}]
)
def test_a_global_budget_is_met_and_certified(options: dict[str, object]) -> None:
    model = made()
    pruned = fxprune.prune(
        model,
        0.3,
        scope="global",
        data=batches(4),
        example_inputs=batches(1)[0][:2],
        importance_options=QUIET,
        **options,
    )
    assert fxprune.verify(model, pruned) < 1e-8


def test_the_plan_says_what_was_discarded(tmp_path: Path) -> None:
    model, data = made(), batches(3)
    pruned = fxprune.prune(model, 0.5, data=data, example_inputs=data[0][:2], importance_options=QUIET)
    plan = fxprune.plan_of(pruned)
    assert plan.discarded.keys() == plan.groups.keys()
    assert all(cost > 0 for cost in plan.discarded.values())
    assert plan.samples == 48
    plan.save(tmp_path / "plan.json")
    again = fxprune.Plan.load(tmp_path / "plan.json")
    assert (again.discarded, again.samples) == (plan.discarded, plan.samples)
    sliced, solved = plan.divergence
    assert again.divergence == plan.divergence and sliced > solved > 0
    said = str(fxprune.report(model, pruned))
    assert "estimated KL discarded" in said and "calibration samples" in said
    assert f"{sliced:.2g}" in next(line for line in said.splitlines() if "KL of held-out" in line)
    assert "few" not in said.split("calibration samples")[1].splitlines()[0]
    nothing = fxprune.plan_of(fxprune.prune(model, 0.5, example_inputs=data[0][:2]))
    assert nothing.discarded == {} and nothing.samples == 0 and nothing.divergence == ()


def test_few_samples_are_said_to_be_few() -> None:
    model, data = made(), batches(2, size=4)
    with pytest.warns(UserWarning, match="8 samples"):
        pruned = fxprune.prune(model, 0.5, data=data, example_inputs=data[0][:2], importance_options=QUIET)
    assert "calibration samples (few" in str(fxprune.report(model, pruned))


def test_masks_tell_how_far_places_err_together() -> None:
    """Alike at all of 7 places, errors add up to 7 times what those of independent places do."""
    model = made()
    data = [x[:, :1].expand(-1, 7, -1) for x in batches(6)]
    analysis = fxprune.analyze(model, example_inputs=data[0][:2])
    (group,) = layers_by_group(analysis, analysis.prunable)
    seen = gathered(analysis, (), [group], data, draws=8, progress=False)
    scores, alone = compensated(analysis, [group], data, seen.derivatives, seen.spreads, progress=False)
    masked = kl(analysis, [group], data, draws=8, measured=0, progress=False)
    found = masked_scale(scores, alone, masked)[group]
    assert np.allclose(found / scores[group], (found / scores[group])[0])
    assert 4 < (found / scores[group])[0] < 30  # (masks take means to go as well)


def test_a_scale_is_of_its_group_alone() -> None:
    analysis = fxprune.analyze(made(), example_inputs=batches(1)[0][:2])
    a, b = analysis.prunable
    scores = {g: np.arange(1.0, g.size + 1) for g in (a, b)}
    masked = {a: 3 * scores[a] - np.where(scores[a] < 3, 100, 0)}  # below zero: of no use, not harmful
    found = masked_scale(scores, {a: scores[a]}, masked)
    assert np.allclose(found[a], 3 * scores[a]) and found[b] is scores[b]
    nothing = masked_scale(scores, {a: np.zeros(a.size)}, masked)
    assert nothing[a] is scores[a]


@pytest.mark.parametrize("scope", ["uniform", "global", "isomorphic"])
def test_masks_are_asked_where_groups_compete(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def noted(scores: Scores, alone: Scores, masked: Scores) -> Scores:
        asked.append(len(alone))
        return masked_scale(scores, alone, masked)

    monkeypatch.setattr(decisions, "masked_scale", noted)
    data = batches(3)
    fxprune.prune(made(), 0.3, data=data, scope=scope, example_inputs=data[0][:2], importance_options=QUIET)
    assert asked == ([] if scope == "uniform" else [2])
