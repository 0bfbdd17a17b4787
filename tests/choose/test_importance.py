"""Importance: what each criterion measures, checked against pruning one channel at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import images, randomise, small_conv, small_hf_vit, small_swin, small_vit
from torch import Tensor, nn

import fxprune
from fxprune.choose.importance import data as data_module
from fxprune.choose.importance import predictions
from fxprune.choose.importance.exact import kl_exact
from fxprune.choose.importance.kl import kl
from fxprune.choose.importance.predictions import DERIVATIVES, Prediction, draws_for
from fxprune.choose.importance.score import WITH_DATA, score
from fxprune.choose.importance.scores import shape_of
from fxprune.choose.importance.soft_masks import SoftMasked
from fxprune.errors import DataError
from fxprune.result.plan import Kept, Plan

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
    estimate = kl(setting.analysis, groups, [setting.images], draws=400, measured=0, progress=False)
    for group in groups:
        exact = second_order(setting, group, element=group.size - 1)
        assert estimate[group][-1] == pytest.approx(exact, rel=0.35, abs=1e-12), group


def test_residual_widths_are_measured_where_it_matters(setting: Setting) -> None:
    """Measured on every sample the estimate is the exact divergence; measured on one it is of its size."""
    residual = [g for g in setting.groups if g.role == "embed"]
    exact = kl_exact(setting.analysis, residual, [setting.images], progress=False)
    whole = kl(setting.analysis, residual, [setting.images], measured=100, progress=False)
    part = kl(setting.analysis, residual, [setting.images], measured=1, progress=False)
    for group in residual:
        np.testing.assert_allclose(whole[group], exact[group], rtol=1e-4, atol=1e-9)
        assert 0.2 < part[group].sum() / exact[group].sum() < 5


def second_order(setting: Setting, group: fxprune.Group, element: int, hair: float = 1e-3) -> float:
    from fxprune.choose.importance.soft_masks import SoftMasked

    mask = torch.ones(3, group.size, dtype=torch.float64)
    mask[:, element] -= hair
    model = SoftMasked(setting.analysis, setting.groups)
    with torch.no_grad():
        p = logits(model.forward({}, 3, setting.images)).log_softmax(-1)
        q = logits(model.forward({group: mask}, 3, setting.images)).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item() / hair**2


class AddsInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down, self.head = (
            nn.Linear(*s) for s in ((8, 12), (12, 10), (10, 12), (12, 5))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x += self.down(self.up(x).relu())
        return self.head(x)


@pytest.mark.parametrize("criterion", ["taylor", "kl", "kl-exact"])
def test_a_stream_that_is_added_to_in_place_counts_alike_in_both_captures(criterion: str) -> None:
    model, x = randomise(AddsInPlace()).double().eval(), images(4).double().reshape(4, -1)[:, :8]
    found = []
    for capture in ("symbolic", "export"):
        analysis = fxprune.analyze(model, example_inputs=x, capture=capture)
        data = [(x, torch.tensor([0, 1, 2, 3]))]
        scores = WITH_DATA[criterion](analysis, list(analysis.prunable), data, progress=False)
        found.append({group.name: values for group, values in scores.items()})
    assert len(found[0]) == 2
    for name, values in found[0].items():
        np.testing.assert_allclose(values, found[1][name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("criterion", ["taylor", "activation"])
def test_a_large_batch_is_cut(criterion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = fxprune.analyze(small_vit(depth=1).double(), example_inputs=images().double())
    data = [(images(5).double(), torch.arange(5))]
    whole = score(analysis, analysis.prunable, criterion, data, progress=False)
    sizes: list[int] = []
    forward = SoftMasked.forward
    monkeypatch.setattr(data_module, "AT_ONCE", 2)
    monkeypatch.setattr(SoftMasked, "forward", lambda s, m, n, *a: sizes.append(n) or forward(s, m, n, *a))
    cut = score(analysis, analysis.prunable, criterion, data, progress=False)
    assert max(sizes) == 2
    for group, values in whole.items():
        np.testing.assert_allclose(cut[group], values)


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


class Phases(nn.Module):
    """Pairs of channels are complex numbers, and the weights that turn them are too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(4, 3)
        self.turns = nn.Parameter(torch.tensor([1, 1j, 9j, 9], dtype=torch.cfloat))
        nn.init.ones_(self.fc1.weight)
        nn.init.ones_(self.fc2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2((torch.view_as_complex(self.fc1(x).unflatten(-1, (-1, 2))) * self.turns).abs())


@pytest.mark.filterwarnings("error")
def test_an_imaginary_part_has_a_magnitude() -> None:
    pruned = fxprune.prune(Phases(), 0.5, example_inputs=torch.randn(2, 6))
    assert pruned.get_parameter("turns").tolist() == [9j, 9]


# ---------------------------------------------------------------- through the public call


def test_data_makes_kl_the_default() -> None:
    model = small_vit()
    data = [images(4, seed=1), images(4, seed=2)]
    by_default = fxprune.plan_of(fxprune.prune(model, 0.5, data=data, example_inputs=images()))
    by_name = fxprune.plan_of(fxprune.prune(model, 0.5, data=data, importance="kl", example_inputs=images()))
    by_size = fxprune.plan_of(fxprune.prune(model, 0.5, example_inputs=images()))
    assert same_choice(by_default, by_name)
    assert not same_choice(by_default, by_size)


def same_choice(a: Plan, b: Plan) -> bool:
    return all(torch.equal(a.groups[name].indices, b.groups[name].indices) for name in a.groups)


def test_kl_keeps_what_the_predictions_need() -> None:
    """A channel that nothing reads is the first to go, however large its weights are."""
    model = small_vit()
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[7] *= 100
        model.blocks[0].mlp.fc2.weight[:, 7] = 0
    name = "blocks.0.mlp.fc1.weight"
    by_size = fxprune.prune(model, 0.5, example_inputs=images())
    by_kl = fxprune.prune(model, 0.5, data=images(4), example_inputs=images())
    assert 7 in fxprune.plan_of(by_size).kept[name][0]
    assert 7 not in fxprune.plan_of(by_kl).kept[name][0]
    assert fxprune.verify(model, by_kl, example_inputs=images(3)) < 1e-8


def test_the_users_own_importance() -> None:
    def last_first(analysis, groups):
        return {g: np.arange(g.size) for g in groups}

    pruned = fxprune.prune(small_vit(), 0.5, importance=last_first, example_inputs=images())
    kept = fxprune.plan_of(pruned).kept["blocks.0.mlp.fc1.weight"][0]
    assert kept.tolist() == list(range(48 * 2, 48 * 4))


class Pixels(nn.Module):
    """Segmentation: class scores for every pixel, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.GELU(), nn.Conv2d(8, 5, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.net(x)}


@pytest.mark.parametrize("criterion", ["kl", "kl-exact"])
def test_other_outputs_by_squared_error_or_the_users_probabilities(criterion: str) -> None:
    model = Pixels()
    analysis = fxprune.analyze(model, example_inputs=images())

    def per_pixel(output: dict[str, Tensor]) -> Tensor:
        return output["out"].movedim(1, -1).log_softmax(-1)

    by_error = score(analysis, analysis.prunable, criterion, images(3), progress=False)
    by_class = score(
        analysis, analysis.prunable, criterion, images(3), log_probabilities=per_pixel, progress=False
    )
    (group,) = analysis.prunable
    assert by_error[group].min() > 0
    assert by_class[group].min() > 0
    assert not np.allclose(by_error[group], by_class[group])


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance": "kl"}, "needs data="),
        ({"data": []}, "holds no batch"),
        ({"data": 3}, "is an iterable of batches of inputs .*, not an? int"),
        ({"data": ["a"]}, "holds no tensor"),
        ({"data": [torch.zeros(2, 3)]}, r"inputs of shape \(2, 3\)"),
        ({"data": images(), "importance": "taylor"}, "needs labels: batch 0"),
        ({"importance": "best"}, "importance='best': one of 'magnitude'"),
        ({"importance_options": {"drawers": 1}}, "drawers"),
        ({"importance": lambda analysis, groups: {}}, "gives no scores for it"),
        ({"importance": lambda analysis, groups: {g: np.ones(3) for g in groups}}, "scores of shape"),
        ({"importance": lambda analysis, groups: {g: np.full(g.size, np.nan) for g in groups}}, "NaN"),
    ],
)
def test_bad_input_is_named(options: dict, message: str) -> None:
    with pytest.raises(fxprune.FxpruneError, match=message):
        fxprune.prune(small_vit(), 0.5, example_inputs=images(), **options)


def test_an_interrupted_exact_run_goes_on(tmp_path: Path) -> None:
    analysis = fxprune.analyze(small_conv(), example_inputs=images())
    data, path = [images(2), images(2, seed=1)], tmp_path / "exact.npz"
    expected = kl_exact(analysis, analysis.prunable, data, progress=False)
    kl_exact(analysis, analysis.prunable[:1], data, progress=False, resume=path)
    written = path.stat().st_mtime_ns
    got = kl_exact(analysis, analysis.prunable, data, progress=False, resume=path)
    assert path.stat().st_mtime_ns > written
    for group in analysis.prunable:
        np.testing.assert_array_equal(got[group], expected[group])

    with pytest.raises(fxprune.FxpruneError, match="another model or other data"):
        kl_exact(analysis, analysis.prunable, [images(2, seed=5)], progress=False, resume=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(fxprune.FxpruneError, match="no whole record"):
        kl_exact(analysis, analysis.prunable, data, progress=False, resume=path)


@pytest.mark.parametrize("options", [{}, {"basis": "given", "refit": False}])
def test_a_large_batch_is_run_a_few_samples_at_a_time(options: dict[str, Any]) -> None:
    model, given = small_vit(depth=1), images(70)
    found = []
    for data in ([given], given.split(32)):
        how = {"data": data, "importance_options": {"progress": False}, **options}
        found.append(fxprune.prune(model, 0.5, **how).state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_batches_that_are_mappings() -> None:
    """By the model's own names; of one tensor beside labels; otherwise the error says what to write."""
    model = small_vit()
    x, labels = images(4), torch.arange(4)
    plain = fxprune.plan_of(fxprune.prune(model, 0.5, data=[x], example_inputs=images()))
    for batch in ({"image": x, "label": labels}, {"x": x, "id": labels}, {"pixels": x, "path": ["a"] * 4}):
        found = fxprune.plan_of(fxprune.prune(model, 0.5, data=[batch], example_inputs=images()))
        assert str(found) == str(plain)
        assert all(found.groups[n].indices.equal(k.indices) for n, k in plain.groups.items())
    with pytest.raises(DataError, match=r"'image', 'mask', 'label'; the model takes 'x'.*batch\['image'\]"):
        fxprune.prune(model, 0.5, data=[{"image": x, "mask": x, "label": labels}], example_inputs=images())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (3.5, "a DataLoader, a list of tensors"),
        ([["a.png", "b.png"]], "wrap it in a DataLoader"),
        (iter(()), "used up"),
        ([torch.zeros(2, 3, 32, 32, dtype=torch.uint8)], r"inputs of torch.uint8; .* torch.float32: scale"),
    ],
)
def test_data_that_holds_no_batches(data: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        fxprune.prune(small_vit(), 0.5, data=data, example_inputs=images())
    assert len(str(caught.value)) < 350


@pytest.mark.parametrize(("samples", "draws"), [(1, 768), (250, 4), (768, 1), (5000, 1)])
def test_few_samples_are_asked_more_often(samples: int, draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "DERIVATIVES", DERIVATIVES)  # tests take fewer
    assert draws_for(samples) == draws


@pytest.mark.parametrize(("classes", "draws"), [(2, 2), (4, 4), (3, 4), (8, 16)])
@pytest.mark.parametrize("pixels", [1, 3])
def test_as_many_draws_as_classes_give_the_whole_fisher_information(
    classes: int, draws: int, pixels: int
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, pixels, classes, dtype=torch.float64, requires_grad=True)
    prediction = Prediction(logits.log_softmax(-1), None)
    generator = torch.Generator().manual_seed(1)
    slopes = torch.stack([found[0] for found in prediction.slopes([logits], draws, generator)])
    p = logits.detach().softmax(-1)
    expected = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
    found = torch.einsum("dbnx,dbny->bnxy", slopes, slopes) * pixels / draws
    torch.testing.assert_close(found, expected)


def test_features_are_drawn_as_a_normal_distribution_says() -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    slopes = [f[0] for f in Prediction(None, features).slopes([features], 4, torch.Generator())]
    found = torch.einsum("dbx,dby->bxy", torch.stack(slopes), torch.stack(slopes)) / 4
    length = features.detach().square().sum(1)
    torch.testing.assert_close(found, torch.eye(4, dtype=torch.float64) / length[:, None, None])
