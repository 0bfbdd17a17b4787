"""A new last layer: found by the analysis, in dense models and pruned ones, of whichever library."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import images, randomise, small_hf_vit, small_swin, small_torchvision_vit, small_vit
from torch import Tensor, nn

import fxprune
from fxprune.errors import DataError, OptionError, TrainingError
from fxprune.finetune.heads import with_classes


def two_heads() -> nn.Module:
    """Class scores are the mean of two layers'."""
    options = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 1,
        "num_heads": 2,
        "num_classes": 10,
    }
    return randomise(timm.models.deit.VisionTransformerDistilled(**options).eval())


class Spatial(nn.Module):
    """Scores are a convolution's, averaged over places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.scores = nn.Conv2d(16, 10, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.stem(x).relu()).mean((2, 3))


MODELS = {
    "timm": (small_vit, 32),
    "swin": (small_swin, 32),
    "hugging face": (small_hf_vit, 32),
    "torchvision": (small_torchvision_vit, 224),
    "two heads": (two_heads, 32),
    "a convolution": (Spatial, 32),
}


def scores(model: nn.Module, x: Tensor) -> Tensor:
    output = model(x)
    return getattr(output, "logits", output)


@pytest.mark.parametrize("form", [None, "graph", "module"])
@pytest.mark.parametrize("name", MODELS)
def test_other_classes_on_the_same_body(name: str, form: str | None) -> None:
    make, size = MODELS[name]
    model: nn.Module = randomise(make().eval())
    x = images(3, size)
    if form is not None:
        model = fxprune.prune(model, 0.5, example_inputs=x, form=form)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    own = with_classes(model, 3, example_inputs=images(2, size))
    assert scores(own, x).shape == (3, 3)
    assert scores(model, x).shape == (3, 10)
    now = own.state_dict()
    changed = {k for k, v in before.items() if now[k].shape != v.shape}
    assert now.keys() == before.keys()
    assert changed and all(now[k].shape[0] == 3 for k in changed)
    assert all(torch.equal(now[k], v) for k, v in before.items() if k not in changed)
    scores(own.train(), x).sum().backward()


def test_a_pruned_one_is_saved_and_loaded(tmp_path: Path) -> None:
    pruned = fxprune.prune(randomise(timm.create_model("test_vit").eval()), 0.5)
    own = with_classes(pruned, 3)
    fxprune.save(own, tmp_path)
    x = images(2, 160)
    assert torch.equal(fxprune.load(tmp_path)(x), own(x))


def test_a_dense_one_is_pruned_and_teaches(tmp_path: Path) -> None:
    dense = with_classes(randomise(timm.create_model("test_vit").eval()), 3)
    pruned = fxprune.prune(dense, 0.5)
    assert fxprune.verify(dense, pruned) < 1e-8
    batches = [(images(4, 160), torch.arange(4) % 3)]
    pytest.importorskip("accelerate")
    training = fxprune.Training(epochs=1, hidden=0.1)
    assert fxprune.distill(pruned, dense, batches, training, progress=False).updates == 1
    fxprune.save(pruned, tmp_path)
    assert torch.equal(fxprune.load(tmp_path)(images(2, 160)), pruned(images(2, 160)))


class Tied(nn.Module):
    """Scores are products with a table of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(10, 16))
        self.stem = nn.Linear(12, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x) @ self.table.T


class Counting(nn.Module):
    """Its code knows how many classes there are."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).reshape(-1, 10)


@pytest.mark.parametrize(
    ("make", "classes", "error", "said"),
    [
        (Tied, 3, TrainingError, "table knows the number of classes"),
        (Counting, 3, TrainingError, "can't be replaced"),
        (Counting, 1, OptionError, "at least 2"),
    ],
)
def test_what_can_not_be_replaced(make: Any, classes: int, error: Any, said: str) -> None:
    model = make().eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=said):
        with_classes(model, classes, example_inputs=torch.zeros(2, 12))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


class Named(nn.Module):
    """Takes names alone, and tells classes by groups of channels, or all."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.scores = nn.Conv2d(8, 4, 1, groups=groups, padding_mode="circular")

    def forward(self, *, x: Tensor) -> Tensor:
        return self.scores(self.body(x).relu()[:, :, None, None]).mean((2, 3))


def test_a_model_that_takes_names() -> None:
    call = {"example_kwargs": {"x": torch.randn(2, 6)}}
    found = with_classes(Named(1), 6, **call)
    assert found.scores.padding_mode == "circular"
    assert found(**call["example_kwargs"]).shape == (2, 6)
    for groups in (2, 4):
        with pytest.raises(TrainingError, match="the classifier can't be replaced"):
            with_classes(Named(groups), 3, **call)


def test_features_have_no_classes() -> None:
    model = small_swin()
    model.head = nn.Identity()
    with pytest.raises(DataError, match="no scores of classes"):
        with_classes(model, 3, example_inputs=images())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["graph", "module"])
def test_a_hugging_face_one_is_loaded_again(form: str, tmp_path: Path, recwarn: Any) -> None:
    """Its configuration names the old classes; the folder says how to build it with the new ones."""
    dense = with_classes(small_hf_vit(), 3)
    pruned: Any = fxprune.prune(dense, 0.5, form=form)
    fxprune.save(pruned, tmp_path)
    assert not [w for w in recwarn if "is not what" in str(w.message)]
    x = images(2, 32)
    assert torch.equal(fxprune.load(tmp_path)(x).logits, pruned(x).logits)
