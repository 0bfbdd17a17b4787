"""Scores with compensation: what is lost once the rest make up for it, held against solving each removal."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.analysis.analysis import Analysis
from fxprune.choose.importance import covariances
from fxprune.choose.importance.answers import Derivatives
from fxprune.choose.importance.compensated import compensated
from fxprune.choose.importance.covariances import PLACES, CovarianceSums
from fxprune.choose.importance.data import batches_of, few_at_once
from fxprune.choose.importance.exact import kl_exact
from fxprune.choose.importance.gathered import gathered
from fxprune.choose.importance.held_out import split
from fxprune.choose.importance.layers import layers_by_group
from fxprune.choose.importance.removal import RIDGE, removal_costs
from fxprune.choose.importance.scores import Scores, shape_of
from fxprune.zoo import randomise

QUIET = {"progress": False}


def problem(n: int, outputs: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(200, rank, dtype=torch.float64) @ torch.randn(rank, n, dtype=torch.float64)
    x = x + 0.1 * torch.randn(200, n, dtype=torch.float64)
    return torch.cov(x.T), torch.randn(outputs, n, dtype=torch.float64)


def solved_error(covariance: Tensor, weight: Tensor, gone: list[int]) -> float:
    """The least squared error of a layer without some of its inputs, by solving for it."""
    n = len(covariance)
    regular = covariance + RIDGE * covariance.diagonal().mean() * torch.eye(n, dtype=torch.float64)
    rest = [i for i in range(n) if i not in gone]
    lost = regular[gone][:, gone] - regular[gone][:, rest] @ torch.linalg.solve(
        regular[rest][:, rest], regular[rest][:, gone]
    )
    return float((weight[:, gone].T @ weight[:, gone] * lost).sum())


@pytest.mark.parametrize("seed", range(3))
def test_the_first_to_go_costs_what_solving_without_it_says(seed: int) -> None:
    covariance, weight = problem(10, 5, 4, seed)
    alone = [solved_error(covariance, weight, [i]) for i in range(10)]
    costs = removal_costs([(covariance, weight)])
    assert int(costs.argmin()) == int(np.argmin(alone))
    assert np.isclose(costs.min(), min(alone), rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_channels_go_one_after_the_other(seed: int) -> None:
    """The sum of what each adds, in turn, is what all cost that are gone."""
    covariance, weight = problem(8, 4, 5, seed)
    costs = removal_costs([(covariance, weight)])
    order = np.argsort(costs, kind="stable")
    errors = [solved_error(covariance, weight, order[:k].tolist()) for k in range(5)]
    added = np.diff(errors)
    assert np.allclose(np.maximum.accumulate(added), costs[order[:4]], rtol=1e-6)


def test_it_beats_judging_each_alone() -> None:
    """Of two that are the same one goes and not both: alone, each is as dispensable as the other."""
    torch.manual_seed(0)
    x = torch.randn(500, 6, dtype=torch.float64)
    x[:, 1] = x[:, 0]  # twins, dear together
    weight = torch.ones(3, 6, dtype=torch.float64)
    weight[:, :2] = 3.0
    costs = removal_costs([(torch.cov(x.T), weight)])
    first, second = sorted(costs[:2])
    assert first < costs[2:].min() < second


def test_two_readers_are_one_sum() -> None:
    readers = [problem(6, 3, 6, seed) for seed in (0, 1)]
    alone = [solved_error(*readers[0], [i]) + solved_error(*readers[1], [i]) for i in range(6)]
    costs = removal_costs(readers)
    assert np.isclose(costs.min(), min(alone), rtol=1e-9)


class Mlp(nn.Module):
    """A hidden layer read by a linear one; a stream that a norm reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.down(nn.functional.gelu(self.up(self.norm(x)))))


def costs_of(analysis: Analysis, data: list[Tensor], known: Derivatives | None = None) -> Scores:
    groups = [*layers_by_group(analysis, analysis.prunable)]
    known = known or gathered(analysis, (), groups, data, progress=False).derivatives
    return compensated(analysis, groups, data, known, progress=False)[0]


def cost_of(analysis: Analysis, data: list[Tensor], known: Derivatives | None = None) -> np.ndarray:
    (costs,) = costs_of(analysis, data, known).values()
    return costs


def test_only_what_layers_read_alone_is_scored() -> None:
    model = Mlp()
    randomise(model, 0)
    torch.manual_seed(0)
    data = [torch.randn(16, 6) for _ in range(3)]
    found = costs_of(fxprune.analyze(model.eval(), example_inputs=data[0][:2]), data)
    assert [g.size for g in found] == [12]
    assert all(found[g].shape == shape_of(g) for g in found)


def test_only_what_layers_read_alone_can_be_made_up_for() -> None:
    analysis = fxprune.analyze(Mlp().eval(), example_inputs=torch.randn(2, 6))
    assert [group.size for group in layers_by_group(analysis, analysis.prunable)] == [12]


def test_some_places_of_many_are_enough_and_all_batches_give_some() -> None:
    """A batch of constants beside batches that vary: what it adds is seen, and copies still cost nothing."""
    model = Mlp().double()
    randomise(model, 0)
    with torch.no_grad():
        model.up.weight[6:], model.up.bias[6:] = model.up.weight[:6], model.up.bias[:6]
    torch.manual_seed(0)
    analysis = fxprune.analyze(model.eval(), example_inputs=torch.randn(2, 6, dtype=torch.float64))
    data = [torch.randn(PLACES * 12, 6, dtype=torch.float64) for _ in range(3)]
    data.append(torch.ones(PLACES * 12, 6, dtype=torch.float64))
    known = Derivatives(moments={"down": torch.eye(8, dtype=torch.float64)})
    thinned = cost_of(analysis, data, known)
    order = np.argsort(thinned, kind="stable")
    assert sorted(i % 6 for i in order[6:].tolist()) == list(range(6))
    moved = [*data[:3], 100 * data[3]]
    assert not np.allclose(thinned, cost_of(analysis, moved, known))


def test_places_count_as_predictions_depend_on_them() -> None:
    """Where one place alone counts, units cost nearly what they do where there is no other place."""
    model = Mlp()
    randomise(model, 0)
    analysis = fxprune.analyze(model.eval(), example_inputs=torch.randn(2, 8, 6))
    torch.manual_seed(0)
    at_first, elsewhere = torch.randn(50, 1, 6), torch.randn(50, 7, 1) * torch.ones(6)
    data = [torch.cat([at_first, elsewhere], 1)]
    parts = split(few_at_once(batches_of(data, analysis, "kl"), analysis), whole=False).all
    first = torch.zeros(1, 8, 1).index_fill(1, torch.tensor(0), 1.0)
    lengths = {p.numbers: {"down": first.expand(p.size, -1, -1)} for p in parts}

    moments = gathered(analysis, (), analysis.prunable, data, progress=False).derivatives.moments
    plain = Derivatives(moments=moments)
    alone, alike = cost_of(analysis, [at_first.expand(-1, 8, -1)], plain), cost_of(analysis, data, plain)
    counted = cost_of(analysis, data, Derivatives(lengths, moments))
    assert np.corrcoef(alone, counted)[0, 1] > 0.97 > 0.9 > np.corrcoef(alone, alike)[0, 1]


def test_hidden_units_that_copy_others_go_first_and_cost_nothing() -> None:
    """Half of the hidden units are the other half again: with the re-fit, half can go for nothing."""
    model = Mlp().double()
    randomise(model, 1)  # (no unit of it costs less than a copy is said to)
    with torch.no_grad():
        model.up.weight[6:] = model.up.weight[:6]
        model.up.bias[6:] = model.up.bias[:6]
    torch.manual_seed(0)
    data = [torch.randn(32, 6, dtype=torch.float64) for _ in range(6)]
    pruned = fxprune.prune(
        model.eval(), 0.5, exclude="embed", data=data, example_inputs=data[0][:2], importance_options=QUIET
    )
    kept = next(k.indices for k in fxprune.plan_of(pruned).groups.values() if k.size == 12)
    assert sorted(i % 6 for i in itertools.chain(kept.flatten().tolist())) == list(range(6))
    x = torch.randn(8, 6, dtype=torch.float64)
    with torch.no_grad():
        off, whole = pruned(x) - model(x), model(x)
    assert float(off.abs().max()) < 1e-2 * float(whole.abs().max())


def test_a_convolution_and_heads_are_read_along_their_channels() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu()).mean((2, 3))

    model = Net()
    randomise(model, 0)
    torch.manual_seed(0)
    data = [torch.randn(8, 3, 5, 5)]
    costs = cost_of(fxprune.analyze(model.eval(), example_inputs=data[0]), data)
    assert costs.shape == (6,) and (costs > 0).all()


def test_an_answers_directions_count_as_predictions_depend_on_them() -> None:
    """A hidden unit that writes what nobody reads costs less than what it writes says."""
    model = Mlp()
    randomise(model, 0)
    with torch.no_grad():
        model.head.weight[:, 0] = 0  # the answer's first channel
        model.down.weight[:, 3] = torch.eye(8)[0] * 2
    torch.manual_seed(0)
    data = [torch.randn(64, 6) for _ in range(3)]
    analysis = fxprune.analyze(model.eval(), example_inputs=data[0][:2])
    alike = cost_of(analysis, data, Derivatives(moments={"down": torch.eye(8, dtype=torch.float64)}))
    costs = cost_of(analysis, data)
    assert costs[3] / costs.mean() < 0.5 * alike[3] / alike.mean()


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_costs_are_in_units_of_divergence(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of independent units, in a model that is nearly linear, the cheapest costs what its removal does."""
    monkeypatch.setattr(covariances, "PLACES", 200)  # (of few places a variance is 15 % off)
    torch.manual_seed(0)
    model: nn.Module
    if kind == "linear":
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 5))
        data = [torch.randn(400, 6, dtype=torch.float64)]
        first = torch.eye(6)
    else:
        model = nn.Sequential(nn.Conv2d(6, 6, 1), nn.Conv2d(6, 5, 2), nn.Flatten())
        data = [torch.randn(400, 6, 2, 2, dtype=torch.float64)]
        first = torch.eye(6)[..., None, None]
    with torch.no_grad():
        model[0].weight.copy_(first)
        model[1].weight.mul_(0.3)
    model.double().eval()
    analysis = fxprune.analyze(model, example_inputs=data[0][:2])
    (group,) = layers_by_group(analysis, analysis.prunable)
    known = gathered(analysis, (), [group], data, draws=8, progress=False).derivatives
    costs = compensated(analysis, [group], data, known, progress=False)[0][group]
    measured = kl_exact(analysis, [group], [data[0] - data[0].mean(0)], progress=False)[group]
    assert int(costs.argmin()) == int(measured.argmin())
    assert costs.min() == pytest.approx(measured.min(), rel=0.15)


def test_what_varies_little_beside_its_mean_is_seen() -> None:
    torch.manual_seed(0)
    varying, total = torch.randn(400, 6) @ torch.randn(6, 6), CovarianceSums()
    for part in (varying + 3000).split(100):
        total.add(part)
    torch.testing.assert_close(
        total.value(), torch.cov(varying.double().T, correction=0), rtol=1e-2, atol=0.02
    )


def test_a_covariance_that_rounding_spoilt_is_no_error() -> None:
    spoilt = torch.eye(8, dtype=torch.float64)
    spoilt[0, 1] = spoilt[1, 0] = 1.2  # no covariance: one of its eigenvalues is below zero
    costs = removal_costs([(spoilt, torch.randn(5, 8))])
    assert np.isfinite(costs).all() and (costs >= 0).all()
    nothing = removal_costs([(torch.zeros(8, 8, dtype=torch.float64), torch.randn(5, 8))])
    assert np.isfinite(nothing).all()
