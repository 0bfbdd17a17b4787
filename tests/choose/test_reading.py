"""Outputs are read sample by sample, wherever a model counts its samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.choose.importance.score import score
from fxprune.errors import DataError

INPUTS = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(3)).double()


class Tiny(nn.Module):
    """A residual branch on tokens, and class scores; `lay_out` says how they are returned."""

    def __init__(self, lay_out: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        self.lay_out = lay_out
        self.embed, self.norm = nn.Linear(8, 12), nn.LayerNorm(12)
        self.fc1, self.fc2, self.head = nn.Linear(12, 16), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        x = x + self.fc2(self.fc1(self.norm(x)).relu())
        return self.lay_out(self.head(x.mean(1)))


class TokensFirst(Tiny):
    """The same on rows of tokens by samples, (tokens batch)."""

    def forward(self, x: Tensor) -> Any:
        b, n, c = x.shape
        x = self.embed(x.transpose(0, 1).reshape(n * b, c))
        x = x + self.fc2(self.fc1(self.norm(x)).relu())
        return self.head(x.reshape(n, b, 12).mean(0))


class NoGrad(Tiny):
    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            return super().forward(x)


class FixedBatch(Tiny):
    def forward(self, x: Tensor) -> Any:
        return torch.stack([Tiny.forward(self, x[i : i + 1])[0] for i in range(len(x))])


def made(kind: type[Tiny] = Tiny, *args: Any) -> Tiny:
    torch.manual_seed(0)
    return kind(*args).double().eval()


def scores(
    model: nn.Module | fxprune.Analysis, importance: str, inputs: Tensor = INPUTS, **options: Any
) -> list[Any]:
    analysis = fxprune.analyze(model, example_inputs=inputs) if isinstance(model, nn.Module) else model
    data = [(inputs, torch.arange(len(inputs)) % 4)]
    return [*score(analysis, analysis.prunable, importance, data, progress=False, **options).values()]


MODELS = {
    "classes first": made(Tiny, lambda y: y.T),
    "one more dimension": made(
        Tiny, lambda y: {"a": y.T, "anchors": torch.ones(5).double(), "mean": y.mean()}
    ),
    "tokens first": made(TokensFirst),
    "no gradients": made(NoGrad),
}


@pytest.mark.parametrize("importance", ["kl", "kl-exact", "taylor"])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_function_scores_the_same(name: str, importance: str) -> None:
    wanted, found = scores(made(), importance), scores(MODELS[name], importance)
    assert len(wanted) == len(found) == 2
    for ours, theirs in zip(wanted, found, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-9, atol=1e-15)


@pytest.mark.filterwarnings("ignore:.*fixes the batch size")
def test_a_batch_that_is_fixed_scores_as_any_other() -> None:
    inputs = INPUTS[:2]
    plain, fixed = (fxprune.analyze(made(kind), example_inputs=inputs) for kind in (Tiny, FixedBatch))
    assert fixed.captured.fixed_batch
    for importance, options, near in (("kl-exact", {}, 1e-9), ("kl", {"draws": 256, "measured": 0}, 0.3)):
        wanted, found = (scores(analysis, importance, inputs, **options) for analysis in (plain, fixed))
        for ours, theirs in zip(wanted, found, strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=near, atol=near * float(ours.mean()))


@pytest.mark.parametrize("lay_out", [lambda y: y.mean(), lambda y: y.mean(0), lambda y: y @ y.T])
def test_outputs_that_mix_samples_are_refused(lay_out: Callable[[Tensor], Tensor]) -> None:
    for importance in ("kl", "kl-exact", "taylor"):
        with pytest.raises(DataError, match=r"tell no sample of a batch from another.*log_probabilities="):
            scores(made(Tiny, lay_out), importance)
    model = made(Tiny, lay_out)
    pruned = fxprune.prune(model, 0.5, example_inputs=INPUTS)
    assert fxprune.verify(model, pruned) < 1e-8


class Features(Tiny):
    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        return (x + self.fc2(self.fc1(self.norm(x)).relu())).transpose(0, 1)


@pytest.mark.filterwarnings("ignore:data= has")
@pytest.mark.parametrize("options", [{"refit": False}, {"scope": "global"}])
def test_features_that_shrink_keep_their_coordinates(options: dict[str, Any]) -> None:
    model, data = made(Features), [INPUTS, INPUTS.flip(1)]
    pruned = fxprune.prune(
        model,
        0.25,
        outputs="prune",
        data=data,
        example_inputs=INPUTS,
        **options,
        importance_options={"progress": False},
    )
    assert fxprune.verify(model, pruned) < 1e-8
    assert not any(name.startswith("embed") for name in fxprune.plan_of(pruned).bases)
