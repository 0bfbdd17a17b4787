"""Budgets: what a ratio is a fraction of, how groups divide it, exceptions, and pruning in steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    counted_macs,
    images,
    mlp,
    parameter_count,
    randomise,
    small_conv,
    small_swin,
    small_vit,
    widths,
)
from torch import Tensor, nn

import fxprune
from fxprune.analysis.analysis import Analysis, Group
from fxprune.analysis.analyze import analyzed
from fxprune.choose import decide, steps
from fxprune.choose.budget import Budget, measured
from fxprune.choose.budget.costs import cost_of
from fxprune.choose.budget.schedules import Uniform
from fxprune.choose.budget.ties import ties_of
from fxprune.choose.importance.compensated import compensated
from fxprune.choose.importance.score import Scores
from fxprune.choose.to_scale import measured_scale
from fxprune.result.measure import eval_copy, macs_of

MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": small_vit,
    "swin": small_swin,
    "conv": lambda: small_conv(width=48),
}


COUNTED = {"params": parameter_count, "macs": lambda model: counted_macs(model, images(1))}


# ---------------------------------------------------------------- targets and scopes


SCOPES = ("uniform", "global", "isomorphic")
# Each model, scope and measure with each other, and each of them with every ratio.
CASES = [
    (target, scope, (0.2, 0.5, 0.7)[(i + j + k) % 3], model)
    for i, target in enumerate(COUNTED)
    for j, scope in enumerate(SCOPES)
    for k, model in enumerate(MODELS)
]


@pytest.mark.parametrize(("target", "scope", "ratio", "model"), CASES)
def test_a_budget_is_met_within_a_hundredth(target: str, scope: str, ratio: float, model: str) -> None:
    dense = MODELS[model]()
    pruned = fxprune.prune(dense, ratio, target=target, scope=scope, example_inputs=images())
    left = COUNTED[target](pruned) / COUNTED[target](dense)
    assert left == pytest.approx(1 - ratio, abs=0.01)
    assert fxprune.verify(dense, pruned) < 1e-8


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("measure", COUNTED)
def test_costs_by_the_axes_follow_what_is_counted(measure: str, model: str) -> None:
    dense = MODELS[model]()
    analysis = fxprune.analyze(dense, example_inputs=images())
    cost, count = cost_of(analysis, measure), COUNTED[measure]
    assert cost({}) == count(dense)
    pruned = fxprune.prune(dense, 0.4, attention="head_dim", example_inputs=images())
    kept = fxprune.plan_of(pruned).groups
    counts = {group: kept[group.name].count for group in analysis.groups if group.name in kept}
    assert cost(counts) == count(pruned)


def test_the_same_ratio_everywhere_differs_by_one_step_at_most() -> None:
    dense = small_vit(depth=4)
    plan = fxprune.plan_of(fxprune.prune(dense, 0.5, target="macs", example_inputs=images()))
    hidden = {kept.count for name, kept in plan.groups.items() if name.endswith("hidden")}
    assert max(hidden) - min(hidden) <= 1


def graded(low: str) -> Callable[[Analysis, list[Group]], Scores]:
    """Every element is worth 1, those of one group a thousandth."""

    def scores(analysis: Analysis, groups: list[Group]) -> Scores:
        heads = [(group.inside.size,) if group.inside else () for group in groups]
        return {
            group: np.full((*own, group.size), 1e-3 if group.name == low else 1.0)
            for group, own in zip(groups, heads, strict=True)
        }

    return scores


def test_one_ranking_takes_what_matters_least_first_down_to_the_floor() -> None:
    low = "blocks.1.mlp.hidden"
    pruned = fxprune.prune(
        small_vit(), 0.1, scope="global", importance=graded(low), floor=0.25, example_inputs=images()
    )
    kept = fxprune.plan_of(pruned).groups
    assert set(kept) == {low}
    everything = fxprune.prune(
        small_vit(), 0.9, scope="global", importance=graded(low), floor=0.25, example_inputs=images()
    )
    for choice in fxprune.plan_of(everything).groups.values():
        assert choice.count >= 0.25 * choice.size


def test_a_ranking_weighs_what_an_element_costs() -> None:
    """All elements matter alike: those whose removal saves most go, the residual width first."""
    pruned = fxprune.prune(
        small_vit(), 0.3, target="params", scope="global", importance=graded("none"), example_inputs=images()
    )
    gone = {name: kept.size - kept.count for name, kept in fxprune.plan_of(pruned).groups.items()}
    assert gone.pop("embed") > 10 and sum(gone.values()) <= 2


def test_groups_of_one_shape_share_a_ranking() -> None:
    low = "blocks.1.mlp.hidden"
    pruned = fxprune.prune(
        small_vit(), 0.4, scope="isomorphic", importance=graded(low), floor=10, example_inputs=images()
    )
    kept = fxprune.plan_of(pruned).groups
    sizes = {name: choice.count / choice.size for name, choice in kept.items()}
    assert sizes[low] == pytest.approx(0.2, abs=0.02) and "blocks.0.mlp.hidden" not in sizes
    assert sizes["embed"] == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("scope", ["uniform", "global", "isomorphic"])
def test_widths_stay_multiples(scope: str) -> None:
    dense = small_vit()
    pruned = fxprune.prune(dense, 0.4, scope=scope, round_to=8, example_inputs=images())
    assert all(width % 8 == 0 or width in (3, 10) for width in widths(pruned)["blocks.0.mlp.fc1.weight"])
    assert widths(pruned)["blocks.0.attn.qkv.weight"][0] % 8 == 0


def test_latency_is_measured_on_the_result() -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU())
    dense = randomise(nn.Sequential(*wide, nn.Linear(2048, 10)).eval())
    how = fxprune.Latency(batch=64, threads=1)
    try:
        pruned = fxprune.prune(dense, 0.5, target=how, example_inputs=images())
    except fxprune.FxpruneError as error:  # a machine that is busy with something else
        assert "nearest choice" in str(error)
        return
    assert 0.1 < parameter_count(pruned) / parameter_count(dense) < 0.9


# ---------------------------------------------------------------- exceptions


def test_ratios_of_their_own() -> None:
    pruned = fxprune.prune(
        small_vit(), 0.5, ratios={"blocks.*.mlp": 0.25, "blocks.1.mlp.hidden": 0.0}, example_inputs=images()
    )
    kept = fxprune.plan_of(pruned).groups
    assert kept["blocks.0.mlp.hidden"].count == 0.75 * kept["blocks.0.mlp.hidden"].size
    assert "blocks.1.mlp.hidden" not in kept
    assert kept["embed"].count == 24


def test_the_rest_meets_the_target() -> None:
    dense = small_vit()
    pruned = fxprune.prune(dense, 0.5, target="params", ratios={"embed": 0.0}, example_inputs=images())
    assert parameter_count(pruned) / parameter_count(dense) == pytest.approx(0.5, abs=0.01)
    assert widths(pruned)["blocks.0.mlp.fc1.weight"][1] == 48


@pytest.mark.parametrize(("floor", "least"), [(20, 20), (0.75, 36)])
def test_a_floor(floor: float, least: int) -> None:
    pruned = fxprune.prune(small_vit(), 0.9, floor=floor, example_inputs=images())
    assert widths(pruned)["blocks.0.mlp.fc1.weight"][1] == least


# ---------------------------------------------------------------- steps


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("attention", ["heads", "head_dim"])
def test_steps_end_at_the_same_widths_and_are_exact(attention: str, model: str) -> None:
    dense = MODELS[model]()
    at_once = fxprune.prune(dense, 0.5, attention=attention, example_inputs=images())
    seen: list[int] = []
    pruned = fxprune.prune(
        dense,
        0.5,
        attention=attention,
        steps=3,
        between=lambda model, step: seen.append(parameter_count(model)),
        example_inputs=images(),
    )
    assert widths(pruned) == widths(at_once)
    assert fxprune.verify(dense, pruned) < 1e-8
    assert len(seen) == 2 and seen == sorted(seen, reverse=True) and seen[-1] > parameter_count(pruned)


def test_what_shrinks_is_chosen_by_the_whole_ratio_not_by_a_step_s() -> None:
    dense = small_vit(depth=1, num_heads=6)  # of which a quarter is no whole number
    at_once, in_steps = (fxprune.prune(dense, 0.5, steps=n, example_inputs=images()) for n in (1, 2))
    assert [*fxprune.plan_of(in_steps).groups] == [*fxprune.plan_of(at_once).groups]
    assert widths(in_steps) == widths(at_once)
    in_steps = fxprune.prune(dense, ratios={"*": 0.4}, steps=2, example_inputs=images())
    assert widths(in_steps) == widths(fxprune.prune(dense, ratios={"*": 0.4}, example_inputs=images()))


class Picked(nn.Module):
    """Whole numbers say which tokens are read."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        return self.body(x).index_select(1, at)


def test_steps_look_at_the_whole_numbers_that_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def watched(module: Any, example: Any, options: Any) -> Analysis:
        seen.extend(example.args)
        return analyzed(module, example, options)

    monkeypatch.setattr(steps, "analyzed", watched)
    at = torch.tensor([2, 0])
    fxprune.prune(Picked(), 0.5, steps=2, example_inputs=(torch.randn(2, 3, 6), at))
    assert torch.equal(seen[1], at) and not seen[0].any()


def test_steps_score_the_trained_model_and_carry_its_weights_over() -> None:
    dense = small_vit(depth=1)
    marked: dict[str, Tensor] = {}

    def train(model: nn.Module, step: int) -> None:
        """From now on the last hidden channels are the largest."""
        weight = model.get_parameter("blocks.0.mlp.fc1.weight")
        with torch.no_grad():
            weight[-96:] += 100.0
        marked["weight"] = weight.detach().clone()

    pruned = fxprune.prune(dense, 0.5, steps=2, between=train, example_inputs=images())
    weight = pruned.get_parameter("blocks.0.mlp.fc1.weight")
    assert torch.isin(weight, marked["weight"]).all() and bool((weight > 50).all())


def test_steps_with_data_and_a_target() -> None:
    dense = small_vit()
    batches = iter([images(4), images(4, seed=1)])
    pruned = fxprune.prune(
        dense,
        0.5,
        target="macs",
        steps=2,
        data=batches,
        importance_options={"progress": False},
        example_inputs=images(),
    )
    assert counted_macs(pruned, images(1)) / counted_macs(dense, images(1)) == pytest.approx(0.5, abs=0.01)
    assert fxprune.verify(dense, pruned) < 1e-8


def test_steps_on_the_way_need_not_meet_their_share() -> None:
    """The branches that go at first are more than a third of what is to go."""
    dense = small_vit()
    pruned = fxprune.prune(dense, 0.7, target="macs", steps=3, depth=0.5, example_inputs=images())
    assert counted_macs(pruned, images(1)) / counted_macs(dense, images(1)) == pytest.approx(0.3, abs=0.01)


def test_steps_without_training_leave_re_fitted_weights_known() -> None:
    dense, data = small_vit(), [images(32)]
    options = {"data": data, "importance_options": {"progress": False}, "example_inputs": images()}
    pruned = fxprune.prune(dense, 0.5, steps=2, between=lambda model, step: None, **options)
    refit = fxprune.plan_of(pruned).refit
    found = fxprune.verify(dense, pruned)
    assert refit and found.exact and not found.changed
    name = next(iter(refit))
    with torch.no_grad():
        pruned.get_parameter(name).mul_(1.5)
    assert [*fxprune.verify(dense, pruned).changed] == [name]


@pytest.mark.parametrize(("trained", "times"), [(True, 1), (False, 3)])
def test_what_is_solved_no_more_is_not_judged_as_if(
    trained: bool, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers are solved again before the first training, or after the last step where there is none."""
    judged: list[int] = []

    def counted(*given: Any, **options: Any) -> Any:
        judged.append(1)
        return compensated(*given, **options)

    monkeypatch.setattr(decide, "compensated", counted)
    options = {"data": [images(32)], "importance_options": {"progress": False}, "basis": "given"}
    between = (lambda model, step: None) if trained else None
    dense = small_vit()
    pruned = fxprune.prune(dense, 0.4, steps=3, between=between, **options)
    assert len(judged) == times and fxprune.verify(dense, pruned).exact


@pytest.mark.slow
def test_kinds_that_compete_are_measured_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def counted(groups: Any, scores: Any, divergence: Any) -> Any:
        measured.append(len(groups))
        return measured_scale(groups, scores, divergence)

    monkeypatch.setattr(decide, "measured_scale", counted)
    options = {"data": [images(8)], "importance_options": {"progress": False}, "refit": True}
    dense = small_vit()
    with pytest.warns(UserWarning, match="8 samples"):
        pruned = fxprune.prune(dense, 0.3, scope="global", steps=3, **options)
    assert len(measured) == 3 and fxprune.verify(dense, pruned).exact


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "flops"}, "'channels', 'params', 'macs', 'latency'"),
        ({"scope": "local"}, "'uniform', 'global', 'isomorphic'"),
        ({"floor": 0}, "floor=0"),
        ({"floor": 1.5}, "floor=1.5"),
        ({"steps": 0}, "steps=0"),
        ({"ratios": {"embed": 1.0}}, r"ratios\['embed'\]=1.0"),
        (
            {"ratios": {"nothing.*": 0.5}},
            "'nothing.*' holds no prunable group; groups are named like 'embed'",
        ),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], says: str) -> None:
    with pytest.raises(fxprune.FxpruneError, match=says):
        fxprune.prune(small_vit(depth=1), 0.5, example_inputs=images(), **options)


def test_a_budget_out_of_reach_says_the_nearest() -> None:
    with pytest.raises(fxprune.FxpruneError, match=r"the nearest choice removes 0\.\d+"):
        fxprune.prune(small_vit(), 0.9, target="params", floor=0.8, example_inputs=images())


def test_time_needs_values() -> None:
    outline = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)).to("meta")
    with pytest.raises(fxprune.FxpruneError, match="target='macs'"):
        fxprune.prune(outline, target="latency", example_inputs=torch.zeros(2, 8, device="meta"))


def test_counting_leaves_the_model_as_it_is() -> None:
    dense = small_conv().train()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    fxprune.prune(dense, 0.5, target="macs", example_inputs=images())
    assert dense.training
    for name, value in dense.state_dict().items():
        assert torch.equal(value, before[name])
    copied = eval_copy(dense)
    assert not copied.training and macs_of(copied, fxprune.capture.example_of.Example((images(1),))) > 0


def test_a_schedule_never_gives_more_at_a_higher_level(vit_analysis: fxprune.Analysis) -> None:
    schedule = Uniform(vit_analysis, ties_of(vit_analysis, vit_analysis.prunable), Budget(0.5, round_to=4))
    last = schedule.counts(0.0)
    for level in np.linspace(0, 1, 101):
        counts = schedule.counts(float(level))
        assert all(counts[group] <= last[group] for group in counts)
        last = counts


# ---------------------------------------------------------------- judged by what the user gets


class WithAuxiliaryHead(nn.Module):
    """A second head that train mode alone calls: a third of the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(16, 96), nn.GELU(), nn.Linear(96, 48))
        self.head, self.second = nn.Linear(48, 5), nn.Linear(48, 70)

    def forward(self, x: Tensor) -> Any:
        x = self.features(x).relu()
        return (self.head(x), self.second(x)) if self.training else self.head(x)


@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_an_instance_keeps_what_its_graph_does_not_use(ratio: float) -> None:
    model = randomise(WithAuxiliaryHead().eval())
    pruned = fxprune.prune(model, ratio, target="params", form="module", example_inputs=torch.zeros(2, 16))
    assert isinstance(pruned, WithAuxiliaryHead)
    assert parameter_count(pruned) / parameter_count(model) == pytest.approx(1 - ratio, abs=0.011)
    with pytest.raises(fxprune.errors.BudgetError, match="the nearest choice removes"):
        fxprune.prune(model, 0.97, target="params", form="module", example_inputs=torch.zeros(2, 16))


def test_the_time_of_an_instance_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[type] = []

    def ratio_of(dense: nn.Module, pruned: nn.Module, *_: Any, **__: Any) -> float:
        timed.append(type(pruned))
        return parameter_count(pruned) / parameter_count(dense)

    monkeypatch.setattr(measured, "latency_ratio", ratio_of)
    model = randomise(WithAuxiliaryHead().eval())
    pruned = fxprune.prune(model, 0.5, target="latency", form="module", example_inputs=torch.zeros(2, 16))
    assert timed and set(timed) == {type(pruned)}
