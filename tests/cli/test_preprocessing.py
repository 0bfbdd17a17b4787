"""Images are normalised as the model's makers recorded: timm's record, an image processor, or options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import draw_classes, randomise
from safetensors.torch import save_file

import fxprune
from fxprune.cli.app import run
from fxprune.cli.preprocessing import preprocessing_of

transformers = pytest.importorskip("transformers")

PROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "resample": 2,
    "size": {"height": 32, "width": 32},
}
TRAIN = ("--batch", "4", "--epochs", "1", "--ratio", "0.25", "-q")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of Hugging Face's with its image processor, and images of two classes."""
    folder = tmp_path_factory.mktemp("preprocessing")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder / "vit")
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    draw_classes(folder / "train", 4)
    return folder


def evaluated(folder: Path | str, place: Path, capsys: Any, *more: str) -> str:
    capsys.readouterr()
    assert run(["evaluate", str(folder), "--data", str(place / "train"), "--json", "-q", *more]) == 0
    transform: str = json.loads(capsys.readouterr().out)["transform"]
    return transform


def test_an_image_processor_is_followed_and_kept(place: Path, tmp_path: Path, capsys: Any) -> None:
    """By pruning, training, and whatever reads the folder afterwards."""
    wanted = "bilinear, crop 1, mean 0.1/0.2/0.3, std 0.4/0.5/0.6 (of preprocessor_config.json)"
    model, data = f"hf:{place / 'vit'}", ("--data", str(place / "train"))
    assert wanted in evaluated(model, place, capsys, "--pretrained")
    assert run(["prune", model, "--pretrained", "--out", str(tmp_path / "half"), *data]) == 0
    assert wanted in capsys.readouterr().err
    assert wanted in evaluated(tmp_path / "half", place, capsys)
    line = ["finetune", str(tmp_path / "half"), *data, "--kl", "0", "--batch", "4", "--epochs", "1"]
    assert run([*line, "--out", str(tmp_path / "tuned")]) == 0
    assert wanted in capsys.readouterr().err
    assert wanted in evaluated(tmp_path / "tuned", place, capsys)
    again = transformers.ViTImageProcessor.from_pretrained(tmp_path / "tuned")
    assert list(again.image_mean) == PROCESSOR["image_mean"]


def test_options_come_first_and_are_kept(place: Path, tmp_path: Path, capsys: Any) -> None:
    line = ["prune", f"hf:{place / 'vit'}", "--pretrained", "--out", str(tmp_path / "half"), "-q"]
    assert run([*line, "--data", str(place / "train"), "--mean", "0.25", "--std", "0.5,0.5,0.25"]) == 0
    found = evaluated(tmp_path / "half", place, capsys)
    assert "bilinear" in found and "mean 0.25/0.25/0.25, std 0.5/0.5/0.25" in found
    assert "mean 0.75/0.5/0.25" in evaluated(tmp_path / "half", place, capsys, "--mean", "0.75,0.5,0.25")
    assert run(["evaluate", str(tmp_path / "half"), "--data", str(place / "train"), "--mean", "0.4,0.5"]) == 1
    assert "--mean 0.4,0.5: the model's images have 3 channels" in capsys.readouterr().err
    assert run([*line, "--mean", "grey"]) == 2
    assert run([*line, "--std", "0"]) == 2


def test_another_model_in_the_folder_leaves_no_processor(place: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(["prune", f"hf:{place / 'vit'}", "--pretrained", "--out", str(tmp_path / "out"), "-q"]) == 0
    assert (tmp_path / "out" / "preprocessor_config.json").exists()
    assert run(["prune", "timm:test_vit", "--out", str(tmp_path / "out"), "-q"]) == 0
    assert "recorded with the model" in evaluated(tmp_path / "out", place, capsys, "--batch", "2")


@pytest.mark.parametrize(
    ("changed", "mean", "std"),
    [
        ({}, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        ({"do_normalize": False}, (0.0,), (1.0,)),
        ({"rescale_factor": 2 / 255}, (0.05, 0.1, 0.15), (0.2, 0.25, 0.3)),
        ({"do_rescale": False, "image_mean": [127.5], "image_std": [255.0]}, (0.5,), (1.0,)),
    ],
)
def test_pixels_as_timm_counts_them(changed: Any, mean: Any, std: Any, tmp_path: Path) -> None:
    """From 0 to 1, whatever the processor multiplies them by first."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **changed}))
    found = preprocessing_of(str(tmp_path), torch.nn.Identity()).config
    assert found["mean"] == pytest.approx(mean) and found["std"] == pytest.approx(std)


@pytest.mark.parametrize(
    ("size", "crop", "share", "mode"),
    [
        ({"height": 32, "width": 32}, {}, 1.0, "squash"),
        ({"shortest_edge": 256}, {"do_center_crop": True, "crop_size": {"height": 224}}, 0.875, "center"),
        ({"shortest_edge": 224}, {"crop_pct": 0.9}, 0.9, "center"),
    ],
)
def test_what_is_cropped(size: Any, crop: Any, share: float, mode: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, "size": size, **crop}))
    found = preprocessing_of(str(tmp_path), torch.nn.Identity()).config
    assert (found["crop_pct"], found["crop_mode"]) == (share, mode)


def test_the_source_is_not_overwritten(place: Path, tmp_path: Path, capsys: Any) -> None:
    """By whatever name it is given."""
    dense = randomise(timm.create_model("test_vit").eval())
    save_file(dense.state_dict(), tmp_path / "dense.safetensors")
    fxprune.save(fxprune.prune(dense, 0.25), tmp_path / "half")
    before = {path.name: path.read_bytes() for path in (tmp_path / "half").iterdir()}
    half, data = str(tmp_path / "half"), ("--data", str(place / "train"))
    (tmp_path / "link").symlink_to(tmp_path / "half")
    own = ("--checkpoint", str(tmp_path / "dense.safetensors"))
    for line in (
        ["prune", half, "--out", half],
        ["finetune", half, *data, "--kl", "0", "--out", str(tmp_path / "link")],
        ["finetune", "timm:test_vit", *own, *data, "--teacher", half, "--out", f"{tmp_path}/./half"],
    ):
        capsys.readouterr()
        assert run([*line, "-q"]) == 2
        assert "is the folder that is read, and would be lost: give another" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "half").iterdir()}
