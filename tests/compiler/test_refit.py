"""Re-fit: what reads a shrunk axis is solved again, never for the worse, and the certificate still holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.compiler.refit import regression
from fxprune.compiler.refit.consumers import Consumer
from fxprune.compiler.refit.regression import PairMoments, solved
from fxprune.errors import OptionError
from fxprune.zoo import randomise

QUIET = {"progress": False}


class Mixer(nn.Module):
    """A stem, a convolution over places, one in groups, and a head: every kind of layer that is solved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 2, 2)
        self.wide = nn.Conv2d(16, 24, 3, padding=1, stride=2)
        self.grouped = nn.Conv2d(24, 16, 3, padding="same", groups=2, bias=False)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.wide(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.grouped(x)).mean((2, 3)))


class Block(nn.Module):
    """A residual stream with norms: narrowed, it changes all that its readers see."""

    def __init__(self, twice: bool = False, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 16)
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.last, self.head = nn.LayerNorm(16), nn.Linear(16, 8, bias=False)
        self.twice = twice
        if tied:
            self.other = nn.Linear(16, 8, bias=False)
            self.other.weight = self.head.weight
        self.tied = tied

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(1 + self.twice):
            x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        x = self.last(x).mean(1)
        return self.head(x) + self.other(x) if self.tied else self.head(x)


def made(model: nn.Module) -> nn.Module:
    randomise(model, 0)
    return model.eval()


def images(samples: int = 40, seed: int = 0) -> list[Tensor]:
    drawn = torch.randn(samples, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return list(nn.functional.interpolate(drawn[..., :4, :4], size=16, mode="bilinear").split(16))


def tokens(samples: int = 60, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(4, 12, generator=torch.Generator().manual_seed(99))
    return list((torch.randn(samples, 6, 4, generator=generator) @ mix).split(16))


CASES = {"convolutions": (Mixer, images), "stream": (Block, tokens)}


def off(model: nn.Module, other: nn.Module, data: list[Tensor]) -> float:
    with torch.no_grad():
        return float(sum((model(x) - other(x)).square().sum() for x in data))


@pytest.mark.parametrize("form", ["graph", "module"])
@pytest.mark.parametrize("case", CASES)
def test_less_is_lost_on_data_that_was_not_seen(case: str, form: str) -> None:
    build, draw = CASES[case]
    model = made(build())
    kept = [t.clone() for t in model.state_dict().values()]
    options = {"data": draw(), "importance_options": QUIET, "form": form, "example_inputs": draw()[0][:2]}
    options |= {"basis": "given", "importance": "activation"}  # chooses the same with and without re-fit
    plain = fxprune.prune(model, 0.4, refit=False, **options)
    better = fxprune.prune(model, 0.4, **options)
    assert off(model, better, draw(seed=5)) < 0.6 * off(model, plain, draw(seed=5))
    assert all(torch.equal(a, b) for a, b in zip(kept, model.state_dict().values(), strict=True))
    assert fxprune.verify(model, better).exact
    plan = fxprune.plan_of(better)
    readers = {"head.bias", "wide.weight"} if build is Mixer else {"head.weight", "down.weight"}
    assert readers <= plan.refit.keys()
    for name, tensor in better.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]) == (name not in plan.refit)
    assert all(done.after < done.before for done in plan.refit.values())


def test_a_last_layer_that_reads_all_it_did_makes_up_for_what_others_lost() -> None:
    torch.manual_seed(0)
    data = [torch.randn(16, 7, 12) for _ in range(8)]
    pruned = fxprune.prune(
        made(Block()), data=data, ratios={"embed": 0.0}, basis="given", importance_options=QUIET
    )
    plan = fxprune.plan_of(pruned)
    assert pruned.head.weight.shape == (8, 16)
    assert plan.refit.keys() == {"down.weight", "down.bias", "head.weight"}
    assert plan.divergence[1] < plan.divergence[0]
    assert fxprune.verify(made(Block()), pruned) < 1e-8


def test_without_it_every_weight_is_a_slice() -> None:
    model = made(Block())
    options = {"data": tokens(), "importance_options": QUIET, "basis": "given", "refit": False}
    plan = fxprune.plan_of(fxprune.prune(model, 0.5, **options))
    assert not plan.refit and not plan.unfitted


def test_a_changed_weight_is_no_refit_any_more() -> None:
    model = made(Block())
    pruned = fxprune.prune(model, 0.5, data=tokens(), importance_options=QUIET)
    assert fxprune.verify(model, pruned).exact
    with torch.no_grad():
        pruned.head.weight[0, 0] += 1e-3
    found = fxprune.verify(model, pruned)
    assert not found.exact and "head.weight" in found.changed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_keep_their_dtype(dtype: torch.dtype) -> None:
    model = made(Block()).to(dtype)
    data = [x.to(dtype) for x in tokens()]
    plain = fxprune.prune(model, 0.4, data=data, refit=False, importance_options=QUIET)
    pruned = fxprune.prune(model, 0.4, data=data, importance_options=QUIET)
    assert {p.dtype for p in pruned.parameters()} == {dtype}
    assert fxprune.plan_of(pruned).refit and fxprune.verify(model, pruned).exact
    assert off(model, pruned, data) < off(model, plain, data)


@pytest.mark.parametrize("options", [{"twice": True}, {"tied": True}])
def test_what_several_calls_use_keeps_its_slice(options: dict[str, bool]) -> None:
    model = made(Block(**options))
    pruned = fxprune.prune(model, 0.4, data=tokens(), importance_options=QUIET)
    plan = fxprune.plan_of(pruned)
    shared = "head.weight" if "tied" in options else "down.weight"
    assert shared not in plan.refit and plan.refit
    assert any("several places" in why for why in plan.unfitted.values())
    assert fxprune.verify(model, pruned).exact


def test_one_sample_is_too_little_to_choose_by() -> None:
    model = made(Block())
    one = [tokens()[0][:1]]
    pruned = fxprune.prune(model, 0.4, data=one, basis="given", importance_options=QUIET)
    plan = fxprune.plan_of(pruned)
    assert not plan.refit and all("one sample" in why for why in plan.unfitted.values()) and plan.unfitted


def test_the_plan_is_saved_with_it(tmp_path: Path) -> None:
    model = made(Block())
    pruned = fxprune.prune(model, 0.4, data=tokens(), importance_options=QUIET)
    plan = fxprune.plan_of(pruned)
    plan.save(tmp_path / "plan.json")
    assert fxprune.Plan.load(tmp_path / "plan.json").refit == plan.refit
    again = fxprune.apply(model, plan)
    scaled = fxprune.plan_of(again).refit  # norms alone, and nothing was solved
    assert {name: found.ridge for name, found in scaled.items()} == dict.fromkeys(
        ("norm.weight", "last.weight"), float("inf")
    )
    assert fxprune.verify(model, again).exact
    fxprune.save(pruned, tmp_path / "folder", build="tests.compiler.test_refit:Block")
    loaded = fxprune.load(tmp_path / "folder", model=Block())
    assert fxprune.plan_of(loaded).refit == plan.refit
    assert fxprune.verify(model, loaded).exact


def test_training_between_steps_is_not_undone() -> None:
    model, seen = made(Block()), []

    def between(pruned: nn.Module, step: int) -> None:
        with torch.no_grad():
            pruned.head.weight.fill_(step)
        seen.append(bool(fxprune.plan_of(pruned).refit))

    pruned = fxprune.prune(model, 0.4, data=tokens(), steps=2, between=between, importance_options=QUIET)
    assert seen == [True] and bool((pruned.head.weight == 1).all())


def test_it_needs_data() -> None:
    with pytest.raises(OptionError, match="refit"):
        fxprune.prune(made(Block()), 0.5, refit=True, example_inputs=tokens()[0])


def test_any_criterion_goes_with_it() -> None:
    model = made(Block())
    pruned = fxprune.prune(model, 0.4, data=tokens(), importance="magnitude", importance_options={})
    assert fxprune.plan_of(pruned).refit and fxprune.verify(model, pruned).exact


# ---------------------------------------------------------------- the regression


def pairs(seed: int, noise: float = 0.0) -> PairMoments:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 50, 5, generator=generator, dtype=torch.float64) + 3
    true = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    y = x @ true.mT + 7 + noise * torch.randn(2, 50, 4, generator=generator, dtype=torch.float64)
    moments = PairMoments()
    for part in range(2):
        moments.add(x[:, part::2], y[:, part::2], torch.ones(25))
    return moments


@pytest.mark.parametrize("free_bias", [True, False])
def test_it_finds_what_there_is_to_find(free_bias: bool) -> None:
    weight = torch.zeros(2, 4, 5, dtype=torch.float64)
    bias = torch.zeros(2, 4, dtype=torch.float64) if free_bias else torch.full((2, 4), 7.0).double()
    found = solved(pairs(0), pairs(1), weight, bias, free_bias=free_bias)
    assert found is not None and found.after < 1e-4 * found.before
    true = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    assert torch.allclose(found.weight, true, atol=0.01)
    assert torch.allclose(found.bias, torch.full((2, 4), 7.0).double(), atol=0.05)


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0, 30.0])
def test_the_ridge_is_the_best_of_all_though_few_are_tried(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, bias = torch.zeros(2, 4, 5, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)
    each = []
    for ridge in regression.RIDGES:
        with monkeypatch.context() as only:
            only.setattr(regression, "RIDGES", (ridge,))
            found = solved(pairs(0, noise), pairs(1, noise), weight, bias, free_bias=True, start=ridge)
            each.append(float("inf") if found is None else found.after)
    for start in (regression.MIDDLE, regression.RIDGES[0], regression.RIDGES[-1]):
        found = solved(pairs(0, noise), pairs(1, noise), weight, bias, free_bias=True, start=start)
        assert found is not None and found.after == min(each)


def test_a_place_that_counts_three_times_is_three_places() -> None:
    x, y = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    counted, repeated = PairMoments(), PairMoments()
    counted.add(x, y, torch.tensor([3.0, 1, 1, 2, 0]))
    rows = [0, 0, 0, 1, 2, 3, 3]
    repeated.add(x[:, rows], y[:, rows], torch.ones(7))
    for name, value in vars(repeated).items():
        assert torch.allclose(torch.as_tensor(value), torch.as_tensor(getattr(counted, name))), name


def test_noise_changes_nothing() -> None:
    true = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    bias = torch.full((2, 4), 7.0).double()
    assert solved(pairs(0, noise=1.0), pairs(1, noise=1.0), true, bias, free_bias=False) is None


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Conv2d(6, 8, (3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2),
        nn.Conv2d(6, 8, 4, padding="same", padding_mode="zeros"),
        nn.Conv1d(6, 4, 3, padding="valid", groups=2),
        nn.Conv3d(6, 4, 2, stride=2),
    ],
)
def test_a_convolution_is_laid_out_as_it_computes(layer: nn.Module) -> None:
    kernel = layer.weight.ndim - 2
    options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    consumer = Consumer("n", "w", "b", kernel, (), options)
    x = torch.randn(2, 6, *[7] * kernel)
    read = consumer.vectors(x, layer.weight)
    given = consumer.answers(layer(x), len(read))
    weight = layer.weight.reshape(len(read), len(layer.weight) // len(read), -1)
    assert torch.allclose(read @ weight.mT + layer.bias.reshape(len(read), 1, -1), given, atol=1e-5)
