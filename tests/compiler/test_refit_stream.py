"""Layers that write to a residual stream: what lies between, what is lacking, and which places count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.choose.importance import answers
from fxprune.choose.importance import gathered as gathering
from fxprune.choose.importance.answers import LEAST, Derivatives, channels_of, counts_of, derivatives_of
from fxprune.choose.importance.data import Batch, batches_of
from fxprune.choose.importance.held_out import split
from fxprune.compiler.refit import consumers as refit_consumers
from fxprune.compiler.refit import refit as refits
from fxprune.compiler.refit.additions import Addition, Between, addition_of, as_answer, between
from fxprune.compiler.refit.consumers import consumers_of
from fxprune.result.selection import Selection
from fxprune.zoo import randomise

QUIET = {"progress": False}


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.1, 2, 16))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Rolled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (2, 4)).roll(1, 2).transpose(1, 2).transpose(1, 2).flatten(1, 2)


class Streams(nn.Module):
    """Blocks on a stream of 16 channels whose writers are followed by something."""

    def __init__(self, after: Callable[[], nn.Module], depth: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 16)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(16, 24) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(24, 16) for _ in range(depth))
        self.after = nn.ModuleList(after() for _ in range(depth))
        self.last, self.head = nn.LayerNorm(16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, up, down, after in zip(self.norms, self.up, self.down, self.after, strict=True):
            x = x + after(down(nn.functional.gelu(up(norm(x)))))
        return self.head(self.last(x)[:, 0])


def made(after: Callable[[], nn.Module]) -> nn.Module:
    model = Streams(after)
    randomise(model, 0)
    return model.eval()


def tokens(samples: int = 80, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(6, 12, generator=torch.Generator().manual_seed(99))
    return list((torch.randn(samples, 8, 6, generator=generator) @ mix).split(16))


FOLLOWED: dict[str, Callable[[], nn.Module]] = {
    "nothing": nn.Identity,
    "dropout": lambda: nn.Dropout(0.1),
    "scale": Scale,
    "moved": Rolled,
    "both": lambda: nn.Sequential(Rolled(), Scale()),
}
NOT_FOLLOWED: dict[str, Callable[[], nn.Module]] = {
    "activation": nn.ReLU,
    "norm": lambda: nn.LayerNorm(16),
    "layer": lambda: nn.Linear(16, 16),
}


def analysed(model: nn.Module) -> fxprune.Analysis:
    return fxprune.analyze(model, example_inputs=tokens()[0][:2])


def addition_after_the_second_block(model: nn.Module) -> Addition | None:
    analysis = analysed(model)
    nodes = {n.name: n for n in analysis.module.graph.nodes}
    return addition_of(analysis, nodes["down_1"])


@pytest.mark.parametrize("after", FOLLOWED)
def test_what_is_lacking_becomes_an_answer(after: str) -> None:
    model = made(FOLLOWED[after])
    found = addition_after_the_second_block(model)
    assert found is not None and len(found.axes) == 3
    module = model.after[1]
    lacking = torch.randn(2, 8, 16)
    nothing = after in ("nothing", "dropout")
    assert between(module, lacking) is (Between.NOTHING if nothing else Between.SCALES)
    assert torch.allclose(module(as_answer(module, lacking, torch.zeros(2, 8, 16))), lacking, atol=1e-5)


def test_what_an_addition_never_sees_lacks_nothing() -> None:
    def cropped(answer: Tensor) -> Tensor:
        return answer[:, :5] * 2

    answer = as_answer(cropped, torch.ones(2, 5, 3), torch.zeros(2, 8, 3))
    assert between(cropped, torch.zeros(2, 8, 3)) is Between.SCALES
    assert bool((answer[:, :5] == 0.5).all()) and not answer[:, 5:].any()


@pytest.mark.parametrize("after", NOT_FOLLOWED)
def test_other_ways_are_not_turned_back(after: str) -> None:
    model = made(NOT_FOLLOWED[after])
    found = addition_after_the_second_block(model)
    assert found is None or between(model.after[1], torch.randn(2, 8, 16)) is Between.OTHER


@pytest.mark.parametrize(
    ("after", "form"), [*((name, "graph") for name in {**FOLLOWED, **NOT_FOLLOWED}), ("both", "module")]
)
def test_a_stream_that_is_made_up_for_is_nearer(
    after: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made({**FOLLOWED, **NOT_FOLLOWED}[after])
    # The first block loses most of its hidden channels; what the next ones read tells what it would give.
    ratios = {"hidden": 0.9, "hidden2": 0.1, "hidden3": 0.1}
    few = {"draws": 1} if after in FOLLOWED else {}  # (which channels go decides how much is made up for)
    options = {"data": tokens(160), "importance_options": {**QUIET, **few}, "form": form, "basis": "given"}

    def off() -> float:
        pruned = fxprune.prune(model, 0.0, ratios=ratios, **options)
        assert fxprune.verify(model, pruned).exact
        unseen = torch.cat(tokens(160, seed=5))
        with torch.no_grad():
            return float((pruned.eval()(unseen) - model(unseen)).square().mean())

    better = off()
    monkeypatch.setattr(refit_consumers, "addition_of", lambda analysis, node: None)
    plain = off()
    assert better < 0.7 * plain if after in FOLLOWED else better > 0.9 * plain


def test_writers_are_solved_though_what_they_read_is_whole() -> None:
    model = made(nn.Identity)
    options = {"ratios": {"embed": 0.5}, "basis": "given", "importance_options": QUIET}
    plan = fxprune.plan_of(fxprune.prune(model, 0.0, data=tokens(400), **options))
    assert "down.0.weight" in plan.refit
    assert not any("down" in name or "embed" in name for name in plan.unfitted)


class Mixer(nn.Module):
    """A layer that mixes tokens: channels are its places, and those that shrink are fewer in the result."""

    def __init__(self, spelled: str) -> None:
        super().__init__()
        self.embed, self.norm, self.spelled = nn.Linear(12, 16), nn.LayerNorm(16), spelled
        self.tokens = nn.Linear(8, 8) if spelled == "linear" else nn.Conv1d(8, 8, 1)
        self.up, self.down, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        mixed = self.norm(x)
        if self.spelled == "linear":
            mixed = self.tokens(mixed.transpose(1, 2)).transpose(1, 2)
        else:
            mixed = self.tokens(mixed)
        x = x + mixed
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return self.head(x.mean(1))


@pytest.mark.parametrize("form", ["graph", "module"])
@pytest.mark.parametrize("spelled", ["linear", "convolution"])
def test_channels_may_be_places(spelled: str, form: str) -> None:
    model = Mixer(spelled)
    randomise(model, 0)
    model.eval()
    pruned = fxprune.prune(model, 0.4, data=tokens(), importance_options=QUIET, form=form)
    sliced, solved = fxprune.plan_of(pruned).divergence
    assert solved < sliced and fxprune.verify(model, pruned).exact


def test_places_that_nobody_reads_count_least() -> None:
    model = made(nn.Identity)
    analysis = analysed(model)
    group = next(g for g in analysis.prunable if g.size == 16)
    selection = Selection.of(analysis, {group: torch.arange(8)})
    consumers = consumers_of(analysis, selection).solved
    batches = [Batch([x], len(x), numbers=(i,)) for i, x in enumerate(tokens(20))]
    channels = {c.node: -1 for c in consumers}
    assert "down_1" in channels and channels.items() <= channels_of(analysis).items()
    lengths = derivatives_of(analysis.module, channels, batches, step=lambda: None).lengths
    for name in channels:
        found = counts_of([lengths[batch.numbers][name] for batch in batches])
        together = torch.cat([c.reshape(-1, 1 if name == "head" else 8) for c in found])
        assert together.mean().item() == pytest.approx(1)
        if name != "head":  # only the first token is read in the end, and tokens never meet
            assert torch.allclose(together[:, 1:], torch.tensor(LEAST)) and together[:, 0].min() > LEAST


@pytest.mark.parametrize("basis", ["principal", "given"])
def test_derivatives_are_taken_in_one_run(basis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bases and indices are chosen by, and how much places count where layers are solved again."""
    taken: list[Derivatives] = []

    def noted(*args: Any, **options: Any) -> Derivatives:
        taken.append(answers.take_slopes(*args, **options))
        return taken[-1]

    monkeypatch.setattr(gathering, "take_slopes", noted)
    monkeypatch.setattr(refits, "derivatives_of", noted)
    model = made(nn.Identity)
    fxprune.prune(model, 0.4, data=tokens(), basis=basis, importance_options=QUIET)
    assert len(taken) == 1


def test_that_run_gives_the_lengths_that_a_run_of_its_own_does() -> None:
    model = made(nn.Identity)
    analysis = analysed(model)
    groups = [g for g in analysis.prunable if g.role == "embed"]
    found = gathering.gathered(analysis, groups, (), tokens(), progress=False).derivatives
    batches = split(batches_of(tokens(), analysis, "refit"), whole=False).all
    expected = derivatives_of(analysis.module, channels_of(analysis), batches, step=lambda: None).lengths
    assert found.lengths.keys() == expected.keys()
    for batch, lengths in expected.items():
        for node, length in lengths.items():
            assert torch.allclose(found.lengths[batch][node], length, rtol=1e-3, atol=1e-5)
