"""Replaced heads, and results that were pruned again, through a folder."""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import images, randomise, small_hf_vit
from torch import nn

import fxprune
from fxprune.errors import FileError, PlanError
from fxprune.result.fingerprint import json_digest
from fxprune.result.saved.layer_data import CLASSES, layer_data, layer_from

HEADS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda n: nn.Linear(n, 7),
    "without bias": lambda n: nn.Linear(n, 7, bias=False),
    "sequence": lambda n: nn.Sequential(
        nn.LayerNorm(n), nn.Dropout(0.1), nn.Linear(n, 12), nn.GELU(), nn.Sequential(nn.Linear(12, 7))
    ),
    "named": lambda n: nn.Sequential(OrderedDict(norm=nn.BatchNorm1d(n, momentum=None), out=nn.Linear(n, 7))),
    "nothing": lambda n: nn.Identity(),
}


def vit() -> nn.Module:
    return randomise(timm.create_model("test_vit", num_classes=5, img_size=32))


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "hugging face": (small_hf_vit, "classifier"),  # the quicker one stands for both where one does
    "timm": (vit, "head"),
}


def quietly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return function(*args, **kwargs)


def with_head(pruned: Any, path: str, head: str) -> Any:
    """Replace the head, train a step."""
    place, _, leaf = path.rpartition(".")
    old = pruned.get_submodule(path)
    setattr(pruned.get_submodule(place), leaf, HEADS[head](old.in_features))
    pruned.train()
    optimiser = torch.optim.SGD(pruned.parameters(), 0.01)
    out = pruned(images())
    (
        out if isinstance(out, torch.Tensor) else out.logits if hasattr(out, "logits") else out[0]
    ).sum().backward()
    optimiser.step()
    return pruned.eval()


def assert_same(got: Any, wanted: Any) -> None:
    first, second = got.state_dict(), wanted.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    a, b = (torch.utils._pytree.tree_leaves(m(images())) for m in (got, wanted))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True) if isinstance(x, torch.Tensor))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", MODELS)
def test_a_replaced_head_comes_back(name: str, head: str, tmp_path: Path) -> None:
    make, path = MODELS[name]
    model = make()
    pruned = with_head(fxprune.prune(model, 0.5, example_inputs=images()), path, head)
    quietly(fxprune.save, pruned, tmp_path)
    loaded = quietly(fxprune.load, tmp_path)
    assert_same(loaded, pruned)
    with pytest.raises(PlanError, match=rf"{path} is now "):
        fxprune.verify(model, loaded)
    quietly(fxprune.save, loaded, tmp_path / "again")  # and once more
    assert_same(quietly(fxprune.load, tmp_path / "again"), pruned)


class Own(nn.Linear):
    """Code of the user's."""


def test_what_a_folder_cannot_hold_is_refused(tmp_path: Path) -> None:
    def pruned() -> Any:
        return fxprune.prune(vit(), 0.5, example_inputs=images())

    for head in (Own(32, 7), nn.Sequential(nn.Linear(32, 9), Own(9, 7)), nn.LSTM(32, 7)):
        model = pruned()
        model.head = head
        with pytest.raises(FileError, match=r"head.* was replaced by .*torch.save"):
            fxprune.save(model, tmp_path)
    model = pruned()
    model.extra = nn.Linear(3, 3)
    with pytest.raises(FileError, match=r"extra.bias is not what the plan made"):
        fxprune.save(model, tmp_path)
    assert not (tmp_path / "fxprune.json").exists()


@pytest.mark.parametrize(
    "layer",
    [
        {"class": "Own", "options": {}},
        {"class": "Linear", "options": {"in_features": 32, "colour": 1}},
        {"class": "Linear", "options": {"in_features": {"a": 1}, "out_features": 7}},
        {"class": ["Linear"], "options": {}},
        {"class": "Sequential", "layers": [1]},
        {"class": "Sequential", "layers": {"a": {"class": "Module", "options": {}}}},
        "Linear",
    ],
)
def test_a_file_names_standard_layers_only(layer: Any, tmp_path: Path) -> None:
    pruned = with_head(fxprune.prune(vit(), 0.5, example_inputs=images()), "head", "linear")
    fxprune.save(pruned, tmp_path)
    file = tmp_path / "fxprune.json"
    record = json.loads(file.read_text())
    record.pop("digest")
    record["replaced"]["head"] = layer
    file.write_text(json.dumps({**record, "digest": json_digest(record)}))
    with pytest.raises(FileError):
        fxprune.load(tmp_path)


ACT, SHARED = nn.ReLU(), nn.Linear(4, 4)
LAYERS = (
    nn.Sequential(nn.Linear(4, 4), ACT, SHARED, ACT, SHARED),
    nn.Conv2d(4, 6, (3, 5), stride=2, padding=1, dilation=2, groups=2, bias=False, padding_mode="circular"),
    nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1),
    nn.Conv1d(4, 6, 3, padding="same"),
    nn.LayerNorm((4, 6), eps=1e-3, elementwise_affine=False),
    nn.LayerNorm(4, bias=False),
    nn.RMSNorm(6, eps=1e-3),
    nn.GroupNorm(2, 6, affine=False),
    nn.BatchNorm2d(6, momentum=None, track_running_stats=False),
    nn.Embedding(10, 6, padding_idx=2),
    nn.Unflatten(1, (2, 3)),
    nn.Flatten(2),
    nn.GELU(approximate="tanh"),
    nn.PReLU(3),
    nn.Softmax(dim=1),
    nn.AdaptiveAvgPool2d((None, 2)),
    nn.MaxPool2d(3, ceil_mode=True),
    nn.Upsample(scale_factor=2.0, mode="bilinear"),
)


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_layers_are_plain_data(layer: nn.Module) -> None:
    data = json.loads(json.dumps(layer_data(layer, "head")))
    again = layer_from(data)
    assert repr(again) == repr(layer)
    assert len([*again.parameters()]) == len([*layer.parameters()])
    shapes = {name: t.shape for name, t in layer.state_dict().items()}
    assert {name: t.shape for name, t in again.state_dict().items()} == shapes


def test_every_class_is_a_layer() -> None:
    assert all(issubclass(getattr(nn, name), nn.Module) for name in CLASSES)


@pytest.mark.parametrize("name", MODELS)
def test_pruned_again(name: str, tmp_path: Path) -> None:
    first = fxprune.prune(MODELS[name][0](), 0.3, example_inputs=images())
    second = fxprune.prune(first, 0.4)
    quietly(fxprune.save, second, tmp_path)
    for model in (None, first):
        loaded = quietly(fxprune.load, tmp_path, model)
        assert_same(loaded, second)
        assert fxprune.verify(first, loaded) < 1e-8
    quietly(fxprune.save, loaded, tmp_path / "again")
    assert_same(quietly(fxprune.load, tmp_path / "again"), second)
    third = with_head(fxprune.prune(second, 0.2), MODELS[name][1], "linear")
    quietly(fxprune.save, third, tmp_path / "third")
    assert_same(quietly(fxprune.load, tmp_path / "third"), third)


class Counts(nn.Linear):
    """Keeps more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


def test_extra_state_is_pruned_beside_and_saved_by_no_folder(tmp_path: Path) -> None:
    model = nn.Sequential(Counts(4, 8), nn.ReLU(), nn.Linear(8, 2))
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(3, 4))
    assert fxprune.verify(model, pruned) < 1e-8
    with pytest.raises(FileError, match="get_extra_state"):
        fxprune.save(pruned, tmp_path)
