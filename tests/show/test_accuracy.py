"""Accuracies of models: beside scikit-learn's, modes, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sklearn.metrics import top_k_accuracy_score
from torch import Tensor, nn

from fxprune.errors import DataError
from fxprune.show.reports.accuracy import accuracies

Batches = list[tuple[Tensor, Tensor]]


def data(classes: int = 8, count: int = 50, size: int = 16) -> Batches:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator)
    y = torch.randint(classes, (count,), generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True))


def test_as_scikit_learn_counts() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(6, 8), nn.Linear(6, 8)]
    batches = data()
    x, y = (torch.cat(column) for column in zip(*batches, strict=True))
    for model, found in zip(models, accuracies(models, batches), strict=True):
        scores = model(x).detach().numpy()
        assert found.images == 50
        assert found.top1 == pytest.approx(top_k_accuracy_score(y, scores, k=1, labels=range(8)))
        assert found.top5 == pytest.approx(top_k_accuracy_score(y, scores, k=5, labels=range(8)))


def test_models_are_judged_in_eval_mode_and_keep_theirs() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.9)).train()
    model[1].eval()
    model[0].train()
    modes = [m.training for m in model.modules()]
    first, again = (accuracies([model], data())[0] for _ in range(2))
    assert first == again
    assert [m.training for m in model.modules()] == modes


class Answers(nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(x)


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"logits": t}, lambda t: SimpleNamespace(logits=t)])
def test_outputs_that_are_scores(wrap: Any) -> None:
    (found,) = accuracies([Answers(lambda x: wrap(torch.eye(8)[: len(x)]))], data(count=4))
    assert found.images == 4


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda x: x[:, :, None], "no scores of classes"),
        (lambda x: x[:1], "no scores of classes"),
        (lambda x: (x, x), "no scores of classes"),
        (lambda x: x[:, :3], "the model has 3 classes"),
    ],
)
def test_outputs_that_are_none(answer: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        accuracies([Answers(answer)], data())


def test_no_numbers_are_no_answers() -> None:
    (found,) = accuracies([Answers(lambda x: torch.full((len(x), 8), torch.nan))], data())
    assert (found.top1, found.top5) == (0, 0)


def test_a_class_that_is_left_out_has_no_score() -> None:
    scores = torch.full((1, 8), -torch.inf).index_fill(1, torch.arange(4), 0.0)
    (found,) = accuracies([Answers(lambda x: scores.repeat(len(x), 1))], data())
    (all_of,) = accuracies([Answers(lambda x: scores.clamp_min(-9).repeat(len(x), 1))], data())
    assert (found.top1, found.top5) == (all_of.top1, all_of.top5) != (0, 0)


def test_no_images() -> None:
    with pytest.raises(DataError, match="no images"):
        accuracies([nn.Linear(6, 8)], [])
