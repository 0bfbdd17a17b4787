"""`fxprune evaluate` on folders of real files: which class a subfolder means, and what the figures are."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from helpers import images, randomise, small_vit
from PIL import Image
from torch import Tensor, nn

import fxprune
from fxprune.cli.app import run
from fxprune.cli.images import batches_from, class_numbers, classes_in, labelled_images
from fxprune.cli.preprocessing import preprocessing_of
from fxprune.errors import DataError

NAME = "test_convnext"
MODEL = f"timm:{NAME}"
PER_CLASS = 3


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return randomise(timm.create_model(NAME).eval(), seed=3)


@pytest.fixture(scope="module")
def weights(dense: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    safetensors.torch.save_file(dense.state_dict(), path)
    return str(path)


def photos(folder: Path, classes: list[str], size: int = 48, channels: int = 3) -> Path:
    """PNG files of noise, some of each class."""
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(PER_CLASS):
            noise = torch.rand(channels, size, size, generator=torch.Generator().manual_seed(31 * c + i))
            pixels = noise.mul(255).byte().movedim(0, -1).squeeze(-1).numpy()
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def transformed(model: nn.Module, folder: Path) -> Tensor:
    """All images of a folder as timm itself would evaluate them."""
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    return torch.stack(
        [transform(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*/*.png"))]
    )


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run(["evaluate", *arguments, "--json", "-q"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_figures_are_those_of_the_models(
    dense: nn.Module, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels chosen so that the dense model is right with two thirds of its first answers."""
    numbers = ["1", "5", "40"]
    folder = photos(tmp_path / "photos", numbers)
    x = transformed(dense, folder)
    pruned = fxprune.prune(dense, 0.5)
    fxprune.save(pruned, tmp_path / "half", build=MODEL)
    order = sorted(numbers)  # as files are sorted
    labels = torch.tensor([int(name) for name in order for _ in range(PER_CLASS)])

    found = evaluated(
        capsys, str(tmp_path / "half"), "--data", str(folder), "--checkpoint", weights, "--batch", "2"
    )
    for name, model in (("dense", dense), ("pruned", pruned)):
        with torch.no_grad():
            ranked = model(x).argsort(1, descending=True)
        hits = ranked[:, :5] == labels[:, None]
        assert found[name]["images"] == len(x)
        assert found[name]["top1"] == pytest.approx(hits[:, 0].double().mean().item())
        assert found[name]["top5"] == pytest.approx(hits.any(1).double().mean().item())


def test_right_answers_count(
    dense: nn.Module, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of the model's own answers, and one of wrong ones."""
    unsorted = photos(tmp_path / "unsorted", ["a", "b"])
    with torch.no_grad():
        answers = dense(transformed(dense, unsorted)).argmax(1).tolist()
    for shift, wanted in ((0, 1.0), (1, 0.0)):
        folder = tmp_path / f"by{shift}"
        for path, answer in zip(sorted(unsorted.glob("*/*.png")), answers, strict=True):
            place = folder / str((answer + shift) % 1000)
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{path.parent.name}{path.name}").write_bytes(path.read_bytes())
        found = evaluated(capsys, MODEL, "--checkpoint", weights, "--data", str(folder))
        assert list(found) == ["data", "transform", "dense"]
        assert found["dense"]["top1"] == wanted


def test_a_model_pruned_on_the_way(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photos(tmp_path / "photos", ["0", "1"])
    line = ["evaluate", MODEL, "--checkpoint", weights, "--data", str(folder), "--ratio", "0.25", "-q"]
    assert run([*line, "--images", "4"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines()[1:3]] == ["dense", "pruned"]
    assert f"4 images of {folder}: classes by number; 160 x 160 pixels, bicubic" in text
    assert "recorded with the model" in text


def test_a_folder_of_few_classes_has_no_top5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_vit(num_classes=4)
    pruned = fxprune.prune(model, 0.5, example_inputs=images())
    fxprune.save(pruned, tmp_path / "half", build="helpers:small_vit", build_options={"num_classes": 4})
    folder = photos(tmp_path / "photos", ["ant", "bee", "cat", "dog"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("helpers.four_classes", lambda: small_vit(num_classes=4), raising=False)
        found = evaluated(
            capsys, str(tmp_path / "half"), "--model", "helpers:four_classes", "--data", str(folder)
        )
    assert found["pruned"]["top5"] is None
    assert "timm's usual ones" in found["transform"]


def test_grey_images(tmp_path: Path) -> None:
    model = small_vit(in_chans=1)
    folder = photos(tmp_path, [str(i) for i in range(3)], channels=1)
    options = {"example_inputs": torch.zeros(2, 1, 32, 32)}
    labelled = labelled_images(
        str(folder), model, options, preprocessing_of("helpers:small_vit", model), None
    )
    ((x, labels),) = labelled.batches(16, torch.device("cpu"))
    assert x.shape == (9, 1, 32, 32)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


# ---------------------------------------------------------------- which class a subfolder means


@pytest.mark.parametrize(
    ("names", "classes", "numbers"),
    [
        (["10", "2", "9"], 12, [10, 2, 9]),
        (["007"], 8, [7]),
        (["ant", "bee", "cow"], 3, [0, 1, 2]),
        (["n01440764", "n01443537", "n15075141"], 1000, [0, 1, 999]),
        (["n00007846", "n00147101"], 2, [0, 1]),
    ],
)
def test_classes(names: list[str], classes: int, numbers: list[int]) -> None:
    found, _ = class_numbers(names, classes, nn.Identity())
    assert [found[name] for name in names] == numbers


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    for name in ("a", "b", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    assert classes_in(str(tmp_path)) == 2


@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        (["ok", "valid"], [0, 0, 0, 1, 1, 1]),  # no split, whatever timm takes it for
        (["cat/day", "cat/night", "dog"], [0] * 6 + [1] * 3),
        (["0/1", "1/0"], [0, 0, 0, 1, 1, 1]),
    ],
)
def test_images_are_of_the_subfolder_that_they_are_below(
    classes: list[str], labels: list[int], tmp_path: Path
) -> None:
    model = small_vit(num_classes=2)
    about = {"example_inputs": images()}, preprocessing_of("helpers:small_vit", model)
    photos(tmp_path, [*classes, ".cache/0"])
    found = labelled_images(str(tmp_path), model, *about, None)
    ((_, told),) = found.batches(16, torch.device("cpu"))
    assert told.tolist() == labels
    (x,), _ = batches_from(str(tmp_path), model, *about, 16, 16)
    assert len(x) == len(labels)


def test_a_broken_image_is_not_judged_by_another(tmp_path: Path) -> None:
    model = small_vit(num_classes=2)
    about = {"example_inputs": images()}, preprocessing_of("helpers:small_vit", model)
    path = photos(tmp_path, ["a", "b"]) / "a" / "1.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=f"{path} can't be read as an image"):
        batches_from(str(tmp_path), model, *about, 16, 16)
    with pytest.raises(DataError, match=f"{path} can't be read as an image"):
        [*labelled_images(str(tmp_path), model, *about, None).batches(16, torch.device("cpu"))]


@pytest.mark.parametrize("more", [[], ["tools/a"]])
def test_splits_are_no_classes(more: list[str], tmp_path: Path) -> None:
    """Neither to learn from both, nor as two classes."""
    model = small_vit(num_classes=2)
    about = {"example_inputs": images()}, preprocessing_of("helpers:small_vit", model)
    photos(tmp_path, ["train/a", "train/b", "val/a", "val/b", *more])
    for read in (
        lambda: labelled_images(str(tmp_path), model, *about, None),
        lambda: batches_from(str(tmp_path), model, *about, 16, 16),
        lambda: classes_in(str(tmp_path)),
    ):
        with pytest.raises(DataError, match=f"splits of a data set \\(train, val\\).*{tmp_path}/train"):
            read()
    (x,), _ = batches_from(str(tmp_path / "train"), model, *about, 16, 16)
    assert len(x) == 6


def test_classes_of_a_configuration() -> None:
    model = nn.Identity()
    model.config = SimpleNamespace(label2id={"zebra": 0, "ant": 1, "cow": 2})  # type: ignore[assignment]
    found, how = class_numbers(["ant", "zebra"], 3, model)
    assert (found, how) == ({"ant": 1, "zebra": 0}, "by the model's names")


@pytest.mark.parametrize(
    ("names", "classes", "says"),
    [
        ([], 10, "no subfolder"),
        (["ant", "bee"], 10, "2 subfolders .* 10 classes"),
        (["0", "10"], 10, "0 to 9"),
        (["n01440764", "n99999999"], 1000, "2 subfolders"),
        ([str(i) for i in range(1, 11)], 10, "alphabetical"),  # torchvision sorts 10 before 2, timm after
        ([f"class{i}" for i in range(11)], 11, "alphabetical"),
    ],
)
def test_classes_that_are_not_certain(names: list[str], classes: int, says: str) -> None:
    with pytest.raises(DataError, match=says):
        class_numbers(names, classes, nn.Identity())


@pytest.mark.parametrize(
    ("model", "says"),
    [("torch.nn:Identity", "example_inputs|input"), ("helpers:mlp", "takes no images|example_inputs")],
)
def test_models_that_classify_no_images(
    model: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos(tmp_path, ["0"])
    assert run(["evaluate", model, "--data", str(folder), "-q"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
