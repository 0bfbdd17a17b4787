"""No option is dropped in silence: two that don't go together are refused, by name, before any work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import images, small_vit

import fxprune
from fxprune.errors import OptionError


def scores(analysis: fxprune.Analysis, groups: list[fxprune.Group]) -> dict[fxprune.Group, Any]:
    return {group: torch.arange(group.size).double().numpy() for group in groups}


def between(pruned: torch.nn.Module, step: int) -> None:
    pass


SMALLER = small_vit(embed_dim=24, num_heads=2)
# Each pair of options of `prune` of which one would have no effect, and the words that name them.
REFUSED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    *(
        ({"like": SMALLER, **other}, ("like=", f"{next(iter(other))}="))
        for other in (
            {"ratio": 0.3},
            {"target": "macs"},
            {"target": fxprune.Latency()},
            {"scope": "global"},
            {"ratios": {"embed": 0.3}},
            {"floor": 1},
            {"round_to": 8},
            {"steps": 2},
            {"depth": 0.5},
            {"attention": "heads"},
            {"attention": "head_dim"},
        )
    ),
    ({"like": SMALLER, "steps": 2, "between": between}, ("like=", "steps=", "between=")),
    ({"like": SMALLER, "importance_options": {"draws": 2}}, ("importance_options=", "'draws'")),
    ({"like": SMALLER, "data": [images()], "refit": False, "importance": "magnitude"}, ("data=", "like=")),
    ({"between": between}, ("between=", "steps=")),
    ({"unit": "block"}, ("unit=", "depth=")),
    ({"data": [images()], "refit": False, "importance": "magnitude"}, ("data=", "magnitude")),
    ({"data": [images()], "refit": False, "importance": "random"}, ("data=", "random")),
    ({"data": [images()], "refit": False, "importance": scores}, ("data=", "function")),
    ({"importance_options": {"draws": 2}}, ("'draws'", "magnitude", "without data=")),
    ({"importance_options": {"progress": False}}, ("'progress'", "magnitude")),
    ({"importance_options": {"seed": 1}, "importance": scores}, ("'seed'", "function")),
    ({"importance_options": {"sed": 1}, "importance": "random"}, ("'sed'", "seed")),
    ({"importance_options": {"resume": "x"}, "data": [images()]}, ("'resume'", "kl")),
    *(
        ({"importance_options": {name: value}, "data": [images()], "importance": of}, (f"{name!r}]=",))
        for of, name, value in (
            ("kl", "measured", -1),
            ("kl", "draws", -1),
            ("kl", "draws", 0),
            ("kl", "draws", 2.5),
            ("kl", "seed", -1),
            ("kl", "log_probabilities", 3),
            ("kl-exact", "at_once", 0),
            ("kl-exact", "at_once", None),
            ("kl-exact", "resume", 3),
            ("taylor", "loss", "mse"),
        )
    ),
    ({"depth": 0.5, "importance_options": {"progress": False}}, ("'progress'",)),
    ({"depth": 0.01}, ("depth=0.01",)),
    ({"exclude": "blocks.0.mlp", "ratios": {"blocks.0.mlp.hidden": 0.3}}, ("ratios=", "exclude=")),
    ({"attention": "head_dim", "ratios": {"blocks.0.attn.heads": 0.3}}, ("ratios=", "attention=")),
    ({"ratios": {"embed": 0.3, "*": 0.4}}, ("ratios=", "the last holds")),
    ({"ratio": 0.7, "ratios": {"*": 0.4}}, ("ratio=0.7", "ratios=")),
    ({"target": "params", "ratios": {"*": 0.4}}, ("ratio=0.5", "ratios=")),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=lambda v: "+".join(map(str, v))[:60])
def test_options_that_do_not_go_together(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(OptionError) as caught:
        fxprune.prune(small_vit(), example_inputs=images(), **options)
    assert all(word in str(caught.value) for word in words), caught.value


# Options with an effect of their own, of which every pair works together: both show in the result.
EFFECTS: dict[str, dict[str, Any]] = {
    "ratio": {"ratio": 0.25},
    "exclude": {"exclude": "blocks.0.mlp"},
    "attention": {"attention": "head_dim"},
    "depth": {"depth": 0.5},
    "scope": {"scope": "global"},
    "target": {"target": "params"},
    "ratios": {"ratios": {"blocks.1.mlp.hidden": 0.1}},
    "floor": {"floor": 0.7},
    "round_to": {"round_to": 16},
    "importance": {"importance": "random"},
}
# scope= and target= take heads or head dims by what they weigh: attention="auto" is "head_dim" there.
# A ratio of 0.25 leaves more than a floor of 0.7.
SAME = {frozenset(pair) for pair in (("attention", "scope"), ("attention", "target"), ("floor", "ratio"))}


def choice(**options: Any) -> Any:
    plan = fxprune.plan_of(fxprune.prune(small_vit(), example_inputs=images(), **options))
    return plan.removed, {name: kept.indices.tolist() for name, kept in plan.groups.items()}


@pytest.mark.parametrize("other", EFFECTS)
@pytest.mark.parametrize("one", EFFECTS)
def test_every_pair_of_options_has_both_effects(one: str, other: str) -> None:
    if one >= other:
        return
    try:
        both = choice(**EFFECTS[one], **EFFECTS[other])
    except fxprune.FxpruneError as error:
        assert one in str(error) or other in str(error), error
        return
    if frozenset((one, other)) not in SAME:
        assert both != choice(**EFFECTS[one]), f"{other}= has no effect beside {one}="
        assert both != choice(**EFFECTS[other]), f"{one}= has no effect beside {other}="


def test_the_re_fit_takes_its_options_beside_any_criterion(capsys: pytest.CaptureFixture[str]) -> None:
    called: list[int] = []

    def log_probabilities(outputs: Any) -> Any:
        called.append(1)
        return outputs.log_softmax(-1)

    options = {"progress": False, "log_probabilities": log_probabilities}
    fxprune.prune(small_vit(), data=[images(32)], importance="magnitude", importance_options=options)
    assert called and not capsys.readouterr().err


def test_options_of_what_looks_at_results() -> None:
    dense = small_vit()
    pruned = fxprune.prune(dense, example_inputs=images())
    with pytest.raises(OptionError, match="batch="):
        fxprune.verify(dense, pruned, example_inputs=images(), batch=5)
    with pytest.raises(OptionError, match="batch="):
        fxprune.report(dense, pruned, example_inputs=images(), batch=5)
    for option in ({"threads": 1}, {"runs": 3}):
        with pytest.raises(OptionError, match="latency=True"):
            fxprune.report(dense, pruned, **option)


def test_options_of_draw(tmp_path) -> None:
    dense = small_vit()
    analysis = fxprune.analyze(dense, example_inputs=images())
    with pytest.raises(OptionError, match="example_inputs="):
        fxprune.draw(analysis, tmp_path / "a.svg", example_inputs=images())
    with pytest.raises(OptionError, match="rules="):
        fxprune.draw(analysis, tmp_path / "a.svg", rules=fxprune.DEFAULT_RULES.extended({}))
    pruned = fxprune.prune(dense, example_inputs=images())
    with pytest.raises(OptionError, match="example_inputs="):
        fxprune.draw(pruned, tmp_path / "a.svg", example_inputs=images())


@pytest.mark.parametrize("options", [{"batch": 0}, {"threads": 0}, {"rounds": 1.5}])
def test_latency_is_checked(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"Latency\("):
        fxprune.Latency(**options)
