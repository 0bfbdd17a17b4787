"""Importance: what each criterion measures, checked against pruning one channel at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import images, small_conv, small_hf_vit, small_swin, small_vit
from torch import Tensor, nn

import fxprune
from fxprune.importance import score
from fxprune.importance.exact import kl_exact
from fxprune.importance.kl import kl
from fxprune.importance.scores import shape_of
from fxprune.plan import Kept, Plan

MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": small_vit,
    "swin": small_swin,
    "conv": small_conv,
    "hf": small_hf_vit,
}


class Setting:
    """A small model in float64 with its analysis and a batch of images."""

    def __init__(self, name: str) -> None:
        self.model = MODELS[name]().double()
        self.images = images(3).double()
        self.analysis = fxprune.analyze(self.model, example_inputs=self.images[:2])
        self.groups = self.analysis.prunable


@pytest.fixture(scope="module", params=MODELS)
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


def divergence(setting: Setting, pruned: nn.Module) -> float:
    """The mean KL divergence between the original's and a pruned model's predictions."""
    with torch.no_grad():
        p, q = (logits(m(setting.images)).log_softmax(-1) for m in (setting.model, pruned))
    return (p.exp() * (p - q)).sum(-1).mean().item()


def logits(output: Tensor | dict[str, Tensor]) -> Tensor:
    return output if isinstance(output, Tensor) else output["logits"]


def without(setting: Setting, group: fxprune.Group, element: int) -> nn.Module:
    """The model with one element removed; where each head chooses, the same one from every head."""
    kept = torch.tensor([i for i in range(group.size) if i != element])
    plan = Plan({group.name: Kept(group.size, kept)})
    return fxprune.apply(setting.model, plan, example_inputs=setting.images[:2])


def test_exact_is_the_divergence_of_the_pruned_model(setting: Setting) -> None:
    """Two elements of each group, against the model that really lacks them."""
    groups = [g for g in setting.groups if g.inside is None and g.size > 1]
    chosen = {g: [0, g.size - 1] for g in groups}
    scores = kl_exact(setting.analysis, groups, [setting.images], elements=chosen, progress=False)
    for group, elements in chosen.items():
        for element in elements:
            expected = divergence(setting, without(setting, group, element))
            assert scores[group][element] == pytest.approx(expected, rel=1e-6, abs=1e-12), group


def test_kl_is_its_second_order(setting: Setting) -> None:
    """Masks a hair below one: the divergence is the estimate times the square of the hair."""
    groups = [g for g in setting.groups if g.inside is None]
    estimate = kl(setting.analysis, groups, [setting.images], draws=400, progress=False)
    for group in groups:
        exact = second_order(setting, group, element=group.size - 1)
        assert estimate[group][-1] == pytest.approx(exact, rel=0.35, abs=1e-12), group


def second_order(setting: Setting, group: fxprune.Group, element: int, hair: float = 1e-3) -> float:
    from fxprune.importance.soft_masks import SoftMasked

    mask = torch.ones(3, group.size, dtype=torch.float64)
    mask[:, element] -= hair
    model = SoftMasked(setting.analysis, setting.groups)
    with torch.no_grad():
        p = logits(model.forward({}, 3, setting.images)).log_softmax(-1)
        q = logits(model.forward({group: mask}, 3, setting.images)).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item() / hair**2


@pytest.mark.parametrize("criterion", ["magnitude", "random", "activation", "taylor", "kl", "kl-exact"])
def test_every_criterion_scores_every_group(setting: Setting, criterion: str) -> None:
    data = [(setting.images, torch.tensor([1, 2, 3]))]
    chosen = setting.groups[:3] if criterion == "kl-exact" else setting.groups
    options = {} if criterion in ("magnitude", "random") else {"progress": False}
    scores = score(setting.analysis, chosen, criterion, data, **options)
    for group in chosen:
        assert scores[group].shape == shape_of(group)
        assert (scores[group] >= 0).all()
        assert np.ptp(scores[group]) > 0, group
