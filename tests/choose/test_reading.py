"""Outputs are read sample by sample, wherever a model counts its samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.choose.importance import exact
from fxprune.choose.importance.function_parts import parts_of_function
from fxprune.choose.importance.score import score
from fxprune.errors import DataError, OptionError

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


class ReadBeforeWritten(Tiny):
    """What a product reads is written over afterwards, before a group's last use runs again."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        y = x * self.fc2(torch.tanh(self.fc1(self.norm(x))))
        return self.head((self.act(x) + y).mean(1))


@pytest.mark.parametrize("importance", ["kl", "kl-exact"])
def test_writes_in_place_leave_what_is_read_again(importance: str) -> None:
    wanted, found = (scores(made(ReadBeforeWritten, inplace), importance) for inplace in (False, True))
    for ours, theirs in zip(wanted, found, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-9, atol=1e-15)


class Nested(Tiny):
    def forward(self, both: list[Tensor]) -> Any:  # type: ignore[override]
        return super().forward(both[0] + both[1])


def test_samples_of_nested_arguments() -> None:
    """Cut to few at once, and one by one, as plain ones are."""
    inputs = torch.randn(40, 6, 8, generator=torch.Generator().manual_seed(3)).double()
    plain, nested = made(), made(Nested)
    wanted, found = (
        [*score(analysis, analysis.prunable, "kl-exact", [item], progress=False).values()]
        for analysis, item in (
            (fxprune.analyze(plain, example_inputs=inputs[:2]), inputs),
            (
                fxprune.analyze(nested, example_inputs=([inputs[:2], inputs[:2]],)),
                ([inputs * 0.25, inputs * 0.75], torch.arange(40)),
            ),
        )
    )
    for ours, theirs in zip(wanted, found, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-9, atol=1e-15)


@pytest.mark.filterwarnings("ignore:.*fixes the batch size")
def test_samples_of_a_fixed_batch_are_not_measured_alone() -> None:
    with pytest.raises(OptionError, match=r"'measured'\] measures samples one by one.*batch at 2"):
        scores(fxprune.analyze(made(FixedBatch), example_inputs=INPUTS[:2]), "kl", INPUTS[:2], measured=1)


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


class Named(Tiny):
    """Takes what others call labels as an input."""

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        return super().forward(x) * labels


def kept(model: nn.Module, data: list[Any], **options: Any) -> dict[str, list[int]]:
    options = {"refit": False, "basis": "given", "importance_options": {"progress": False}} | options
    options = {"example_inputs": INPUTS} | options
    plan = fxprune.plan_of(fxprune.prune(model, 0.5, data=data, **options))
    return {name: choice.indices.tolist() for name, choice in plan.groups.items()}


def test_an_input_that_is_called_labels_is_one() -> None:
    """A factor that is nearly 0 takes the samples that it is of out of the scores."""
    model, x = made(Named), INPUTS
    wanted = kept(made(), [x[:2]], importance="kl-exact")
    factors = torch.ones(4, 1).double()
    factors[2:] = 1e-9
    example = {"example_inputs": (x, factors), "importance": "kl-exact"}
    assert kept(model, [{"x": x, "labels": factors}], **example) == wanted
    assert kept(model, [{"x": x, "labels": factors.flip(0)}], **example) != wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_data_of_another_precision_is_cast(dtype: torch.dtype) -> None:
    rounded, model = INPUTS.half(), made().float()
    example = {"example_inputs": INPUTS.float(), "importance": "kl-exact"}
    assert kept(model, [rounded.to(dtype)], **example) == kept(model, [rounded.float()], **example)


@pytest.mark.parametrize("importance", [None, "kl-exact", "magnitude"])
def test_data_that_is_no_number_is_refused(importance: str | None) -> None:
    for value in (torch.nan, torch.inf):
        odd = INPUTS.clone()
        odd[1, 0, 3] = value
        with pytest.raises(DataError, match="batch 1 of data= holds NaN or infinite values: 1 of 192 in 'x'"):
            kept(made(), [INPUTS, odd], refit=None, basis=None, importance=importance)


def test_predictions_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="predictions of some samples of data= are NaN or infinite"):
        kept(made(Tiny, lambda y: y / 0), [INPUTS])


def test_steps_go_on_from_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"progress": False, "resume": tmp_path / "run.npz"}
    first = kept(made(), [INPUTS], importance="kl-exact", steps=2, importance_options=options)
    assert {path.name for path in tmp_path.iterdir()} == {"run.npz", "run-2.npz"}
    monkeypatch.setattr(exact._Suffix, "without", None)  # nothing is measured again
    assert kept(made(), [INPUTS], importance="kl-exact", steps=2, importance_options=options) == first


def test_a_run_of_another_model_is_not_gone_on_from(tmp_path: Path) -> None:
    """One whose weights have the same sums, whose functions or whose buffers are others."""
    shuffled, other, halved = made(), made(Tiny, lambda y: 2 * y), made()
    with torch.no_grad():
        shuffled.fc1.weight.copy_(shuffled.fc1.weight.flip(0))
    options = {"progress": False, "resume": tmp_path / "run.npz"}
    kept(made(), [INPUTS], importance="kl-exact", importance_options=options)
    read = {**options, "log_probabilities": lambda y: y.log_softmax(-1)}
    for model, given in ((shuffled, options), (other, options), (halved, read)):
        with pytest.raises(DataError, match="another model or other data"):
            kept(model, [INPUTS], importance="kl-exact", importance_options=given)


SCALE = 1.0


class Scaled:
    """A callable object."""

    def __init__(self, scale: float) -> None:
        self.scale = torch.tensor(scale)

    def __call__(self, y: Tensor) -> Tensor:
        return (self.scale * y).log_softmax(-1)

    def read(self, y: Tensor, *, times: float = 1.0) -> Tensor:
        return (times * SCALE * self.scale * y).log_softmax(-1)


def test_what_a_function_holds_is_part_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def spelled(function: Any) -> list[Any]:
        return [*parts_of_function(function)]

    for one, same, other in (
        (Scaled(1.0), Scaled(1.0), Scaled(2.0)),
        (Scaled(1.0).read, Scaled(1.0).read, Scaled(2.0).read),
        *(
            tuple(partial(read, times=times) for times in (1.0, 1.0, 2.0))
            for read in (Scaled(1.0).read, Scaled.read)
        ),
        *(tuple(nn.Dropout(p) for p in (0.1, 0.1, 0.2)),),
    ):
        assert spelled(one) == spelled(same) != spelled(other)
    assert len(spelled(torch.nn.functional.log_softmax)) < 100
    before = spelled(Scaled(1.0).read)
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert spelled(Scaled(1.0).read) != before


def test_no_groups_have_no_scores() -> None:
    """All were chosen by their bases."""
    analysis = fxprune.analyze(made(), example_inputs=INPUTS)
    for importance in ("kl", "kl-exact", "taylor"):
        assert score(analysis, [], importance, [(INPUTS, torch.arange(4))], progress=False) == {}


def test_samples_to_measure_that_nothing_measures() -> None:
    given = {"measured": 2, "progress": False}
    with pytest.raises(OptionError, match=r"'measured'.*no effect"):
        kept(made(), [INPUTS], basis="principal", refit=True, importance_options=given)
    assert kept(made(), [INPUTS], importance_options=given)
