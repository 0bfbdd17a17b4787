"""Outputs that stay whole by name, beside others that may shrink."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import OptionError

X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))


class Scores(NamedTuple):
    scores: Tensor
    hidden: Tensor


@dataclasses.dataclass
class Found:
    boxes: Tensor
    features: Tensor


torch.utils._pytree.register_dataclass(Found)


class Side(nn.Module):
    """Scores [batch, tokens, 4] and hidden states [batch, tokens, 16], held in one of several ways."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.up, self.wide, self.down = nn.Linear(6, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.up(x)
        hidden = x + self.down(self.wide(x).relu())
        scores = self.head(hidden)
        if self.form == "dict":
            return {"scores": scores, "hidden": hidden}
        if self.form == "nested":
            return {"main": {"scores": scores}, "states": [x, hidden]}
        if self.form == "tuple":
            return scores, (x, hidden)
        if self.form == "namedtuple":
            return Scores(scores, hidden)
        return Found(boxes=scores, features=hidden)


def tensors_of(out: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor)]


@pytest.mark.parametrize(
    ("form", "outputs"),
    [
        ("dict", ["scores"]),
        ("dict", "scores"),
        ("dict", ("sc*",)),
        ("nested", ["main"]),
        ("nested", ["main.scores"]),
        ("nested", ["*.scores"]),
        ("tuple", ["0"]),
        ("namedtuple", ["scores"]),
        ("dataclass", ["boxes"]),
    ],
)
def test_others_shrink(form: str, outputs: str | Sequence[str], capture: str) -> None:
    model = randomise(Side(form).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=X, outputs=outputs, capture=capture)
    scores, *hidden = tensors_of(pruned(torch.cat([X, X[:1]])))
    assert scores.shape == (3, 5, 4)
    assert [t.shape for t in hidden] == [(3, 5, 8)] * len(hidden) and hidden
    assert fxprune.verify(model, pruned) < 1e-8


@pytest.mark.parametrize(("form", "outputs"), [("dict", ["*"]), ("nested", ["states.1"]), ("tuple", ["1.0"])])
def test_a_named_state_stays_whole(form: str, outputs: list[str], capture: str) -> None:
    model = randomise(Side(form).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=X, outputs=outputs, capture=capture)
    assert all(t.shape[-1] == 16 for t in tensors_of(pruned(X))[1:])  # the residual stream is one group
    assert fxprune.verify(model, pruned) < 1e-8


def test_the_record_follows(tmp_path: Path) -> None:
    model = randomise(Side("dict").eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=X, outputs=["scores"], steps=2)
    shapes = [t.shape for t in tensors_of(pruned(X))]
    again = fxprune.apply(model, fxprune.plan_of(pruned), example_inputs=X, outputs=["scores"])
    fxprune.save(pruned, tmp_path / "saved")
    for other in (again, fxprune.load(tmp_path / "saved", model=model), pickle.loads(pickle.dumps(pruned))):
        assert [t.shape for t in tensors_of(other(X))] == shapes == [(2, 5, 4), (2, 5, 8)]
        assert fxprune.verify(model, other) < 1e-8


def test_an_unknown_name(capture: str) -> None:
    with pytest.raises(OptionError, match=r"'logits'.*returns 'scores', 'hidden'"):
        fxprune.prune(Side("dict").eval(), 0.5, example_inputs=X, outputs=["logits"], capture=capture)


def test_one_tensor_has_no_name() -> None:
    with pytest.raises(OptionError, match="one tensor"):
        fxprune.prune(nn.Linear(6, 4), 0.5, example_inputs=X, outputs="logits")


@pytest.mark.parametrize("outputs", [[], 3, [""], [1]])
def test_no_names(outputs: Any) -> None:
    with pytest.raises(OptionError, match="outputs="):
        fxprune.prune(Side("dict").eval(), 0.5, example_inputs=X, outputs=outputs)
